/* A fake OpenAI upstream for `make bench`: one thread, epoll, the bytes that vLLM sends, and next to no cost of its own.
 *
 *   upstream PORT
 *
 * Serves GET /v1/models and POST /v1/chat/completions on 127.0.0.1. A request decides by its own fields what it gets, so
 * that one instance serves every workload and nothing has to pass through the proxy but a plain OpenAI request:
 *
 *   model           "steady" answers as fast as it can; "paced-N" streams N chunks a second
 *   max_tokens      how many tokens the answer has (default 32)
 *   stream          true: server-sent events, the first at once, then one a token
 *   stream_options  include_usage true: one more chunk, with the usage, before [DONE]
 *
 * An answer depends on nothing else: its id and its time are fixed, so that any two answers to one request are the same
 * bytes and whatever differs behind a proxy was altered there. The words hold what a re-serialiser would betray itself
 * by: escapes, raw UTF-8, a number with an idle zero, fields that OpenAI does not know.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

enum { REQUEST_MAX = 1 << 20, EVENT_MAX = 1024, TOKENS_MAX = 4096, MODEL_MAX = 64 };

static const char *const MODELS[] = {"steady", "paced-10", "paced-25", "paced-500"};
static const char *const WORDS[] = {" the", " quick", " na\xc3\xafve", " caf\\u00e9", "\\n", " \\\"fox\\\"", " \xe6\x97\xa5",
                                    " jumps"};

struct buffer {
    char *bytes;
    size_t used, size;
};

struct connection {
    int fd, timer; /* the timer ticks once a token while a paced stream runs */
    struct buffer in, out;
    size_t sent;                       /* of out */
    bool streaming, usage, dead;
    int token, tokens;
    char model[MODEL_MAX];
    struct connection *next_dead;
};

static int loop;
static struct connection *graveyard; /* freed after the batch of events: the batch may still point to them */

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void reserve(struct buffer *b, size_t more) {
    if (b->size - b->used >= more) return;
    b->size = (b->used + more) * 2;
    b->bytes = realloc(b->bytes, b->size);
    if (!b->bytes) die("realloc");
}

static void append(struct buffer *b, const char *format, ...) {
    reserve(b, EVENT_MAX);
    va_list arguments;
    va_start(arguments, format);
    int n = vsnprintf(b->bytes + b->used, EVENT_MAX, format, arguments);
    va_end(arguments);
    if (n < 0 || n >= EVENT_MAX) {
        fprintf(stderr, "upstream: a piece of %d bytes does not fit into %d\n", n, EVENT_MAX);
        exit(1);
    }
    b->used += (size_t)n;
}

/* Events carry the connection's address; its lowest bit says that the timer ticked, not the socket. */
static void watch(int operation, int fd, uint32_t events, struct connection *c, bool timer) {
    struct epoll_event event = {.events = events, .data.u64 = (uint64_t)(uintptr_t)c | timer};
    if (epoll_ctl(loop, operation, fd, &event) < 0) die("epoll_ctl");
}

static void tick_every(struct connection *c, long chunks_a_second) {
    struct timespec period = {0};
    if (chunks_a_second == 1) period.tv_sec = 1;
    if (chunks_a_second > 1) period.tv_nsec = 1000000000L / chunks_a_second;
    struct itimerspec timer = {.it_interval = period, .it_value = period};
    if (timerfd_settime(c->timer, 0, &timer, NULL) < 0) die("timerfd_settime");
}

static void drop(struct connection *c) {
    if (c->dead) return;
    c->dead = true;
    close(c->fd);
    close(c->timer);
    c->next_dead = graveyard;
    graveyard = c;
}

static void bury(void) {
    while (graveyard) {
        struct connection *c = graveyard;
        graveyard = c->next_dead;
        free(c->in.bytes);
        free(c->out.bytes);
        free(c);
    }
}

static void flush(struct connection *c) {
    while (c->sent < c->out.used) {
        ssize_t n = send(c->fd, c->out.bytes + c->sent, c->out.used - c->sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EAGAIN) {
            watch(EPOLL_CTL_MOD, c->fd, EPOLLIN | EPOLLOUT, c, false);
            return;
        }
        if (n < 0) {
            drop(c);
            return;
        }
        c->sent += (size_t)n;
    }
    c->out.used = c->sent = 0;
}

/* ---- what is answered ---- */

static const char *word(int token) { return WORDS[(size_t)token % (sizeof WORDS / sizeof *WORDS)]; }

static void answer_json(struct connection *c, int status, const char *reason, const struct buffer *body) {
    append(&c->out, "HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %zu\r\n\r\n", status, reason,
           body->used);
    reserve(&c->out, body->used);
    memcpy(c->out.bytes + c->out.used, body->bytes, body->used);
    c->out.used += body->used;
}

static void answer_models(struct connection *c) {
    struct buffer body = {0};
    append(&body, "{\"object\":\"list\",\"data\":[");
    for (size_t i = 0; i < sizeof MODELS / sizeof *MODELS; i++)
        append(&body,
               "%s{\"id\":\"%s\",\"object\":\"model\",\"created\":1795461540,\"owned_by\":\"bench\",\"max_model_len\":8192}",
               i ? "," : "", MODELS[i]);
    append(&body, "]}");
    answer_json(c, 200, "OK", &body);
    free(body.bytes);
}

static void answer_error(struct connection *c, int status, const char *reason) {
    struct buffer body = {0};
    append(&body, "{\"error\":{\"message\":\"%s\",\"type\":\"invalid_request_error\",\"param\":null,\"code\":%d}}", reason,
           status);
    answer_json(c, status, reason, &body);
    free(body.bytes);
}

static void answer_whole(struct connection *c) {
    struct buffer body = {0};
    append(&body,
           "{\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion\",\"created\":1795461540,\"model\":\"%s\",\"choices\":"
           "[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"",
           c->model);
    for (int i = 0; i < c->tokens; i++) append(&body, "%s", word(i));
    append(&body,
           "\",\"refusal\":null,\"annotations\":null,\"tool_calls\":[]},\"logprobs\":null,\"finish_reason\":\"length\","
           "\"stop_reason\":null,\"token_ids\":null}],\"service_tier\":null,\"system_fingerprint\":null,"
           "\"usage\":{\"prompt_tokens\":256,\"total_tokens\":%d,\"completion_tokens\":%d},\"prompt_logprobs\":null,"
           "\"kv_transfer_params\":null,\"bench\":{\"score\":1.0, \"kept\":true}}",
           256 + c->tokens, c->tokens);
    answer_json(c, 200, "OK", &body);
    free(body.bytes);
}

/* One server-sent event as one HTTP chunk. */
static void append_event(struct connection *c, const char *json) {
    append(&c->out, "%zx\r\ndata: %s\n\n\r\n", strlen(json) + 8, json);
}

#define CHUNK_HEAD "{\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion.chunk\",\"created\":1795461540,\"model\":\"%s\","

static void begin_stream(struct connection *c) {
    char event[EVENT_MAX / 2];
    c->streaming = true;
    c->token = 0;
    append(&c->out, "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n");
    snprintf(event, sizeof event,
             CHUNK_HEAD "\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,"
                        "\"finish_reason\":null}],\"prompt_token_ids\":null}",
             c->model);
    append_event(c, event);
}

static void append_token(struct connection *c) {
    char event[EVENT_MAX / 2];
    bool last = c->token == c->tokens - 1;
    snprintf(event, sizeof event,
             CHUNK_HEAD "\"choices\":[{\"index\":0,\"delta\":{\"content\":\"%s\"},\"logprobs\":null,\"finish_reason\":%s,"
                        "\"token_ids\":null}]}",
             c->model, word(c->token), last ? "\"length\"" : "null");
    append_event(c, event);
    c->token++;
    if (!last) return;
    if (c->usage) {
        snprintf(event, sizeof event,
                 CHUNK_HEAD "\"choices\":[],\"usage\":{\"prompt_tokens\":256,\"total_tokens\":%d,\"completion_tokens\":%d}}",
                 c->model, 256 + c->tokens, c->tokens);
        append_event(c, event);
    }
    append_event(c, "[DONE]");
    append(&c->out, "0\r\n\r\n");
    c->streaming = false;
}

/* ---- what was asked ---- */

/* The value of a field, wherever it stands in the body. Enough for bench/load's requests and for what a proxy makes of
 * them, which may add spaces; it is no JSON parser. */
static const char *field(const char *body, const char *name) {
    char quoted[MODEL_MAX];
    snprintf(quoted, sizeof quoted, "\"%s\"", name);
    const char *value = strstr(body, quoted);
    if (!value) return "";
    value += strlen(quoted);
    return value + strspn(value, " \t\r\n:");
}

static void answer_chat(struct connection *c, const char *body) {
    const char *model = field(body, "model"), *tokens = field(body, "max_tokens");
    size_t length = *model == '"' ? strcspn(model + 1, "\"") : 0;
    if (length == 0 || length >= MODEL_MAX) {
        answer_error(c, 400, "model is missing");
        return;
    }
    memcpy(c->model, model + 1, length);
    c->model[length] = '\0';
    c->tokens = *tokens ? atoi(tokens) : 32;
    if (c->tokens < 1 || c->tokens > TOKENS_MAX) {
        answer_error(c, 400, "max_tokens is out of range");
        return;
    }
    if (strncmp(field(body, "stream"), "true", 4) != 0) {
        answer_whole(c);
        return;
    }
    c->usage = strncmp(field(body, "include_usage"), "true", 4) == 0;
    begin_stream(c);
    long pace = strncmp(c->model, "paced-", 6) == 0 ? atol(c->model + 6) : 0;
    if (pace > 0)
        tick_every(c, pace);
    else
        while (c->streaming) append_token(c);
}

/* Answers the requests that lie complete in the buffer, one after the other; a stream holds the next one back. */
static void serve(struct connection *c) {
    while (!c->streaming && !c->dead && c->in.used) {
        reserve(&c->in, 1);
        c->in.bytes[c->in.used] = '\0';
        char *end = memmem(c->in.bytes, c->in.used, "\r\n\r\n", 4);
        if (!end) break;
        *end = '\0';
        size_t head = (size_t)(end - c->in.bytes) + 4;
        const char *stated = strcasestr(c->in.bytes, "\ncontent-length:");
        if (strcasestr(c->in.bytes, "\ntransfer-encoding:")) {
            answer_error(c, 411, "a content-length is needed");
            flush(c);
            drop(c);
            return;
        }
        size_t body = stated ? strtoul(stated + strlen("\ncontent-length:"), NULL, 10) : 0;
        if (head + body > REQUEST_MAX) {
            answer_error(c, 413, "the request is too large");
            flush(c);
            drop(c);
            return;
        }
        if (c->in.used < head + body) {
            *end = '\r';
            break;
        }
        char after = c->in.bytes[head + body];
        c->in.bytes[head + body] = '\0';
        if (strncmp(c->in.bytes, "GET /v1/models ", 15) == 0)
            answer_models(c);
        else if (strncmp(c->in.bytes, "POST /v1/chat/completions ", 26) == 0)
            answer_chat(c, c->in.bytes + head);
        else
            answer_error(c, 404, "not found");
        c->in.bytes[head + body] = after;
        c->in.used -= head + body;
        memmove(c->in.bytes, c->in.bytes + head + body, c->in.used);
        flush(c);
    }
}

/* ---- the loop ---- */

static void on_tick(struct connection *c) {
    uint64_t ticks;
    if (read(c->timer, &ticks, sizeof ticks) != sizeof ticks) return;
    while (ticks-- && c->streaming) append_token(c);
    if (!c->streaming) tick_every(c, 0);
    flush(c);
    serve(c);
}

static void on_socket(struct connection *c, uint32_t events) {
    if (events & EPOLLOUT) {
        watch(EPOLL_CTL_MOD, c->fd, EPOLLIN, c, false);
        flush(c);
    }
    if (c->dead || !(events & (EPOLLIN | EPOLLHUP | EPOLLERR))) return;
    reserve(&c->in, 16384);
    ssize_t n = recv(c->fd, c->in.bytes + c->in.used, c->in.size - c->in.used, 0);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) {
        drop(c);
        return;
    }
    c->in.used += (size_t)n;
    serve(c);
}

static void on_accept(int listener) {
    int fd, on = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        struct connection *c = calloc(1, sizeof *c);
        if (!c) die("calloc");
        c->fd = fd;
        c->timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
        if (c->timer < 0) die("timerfd_create");
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        watch(EPOLL_CTL_ADD, fd, EPOLLIN, c, false);
        watch(EPOLL_CTL_ADD, c->timer, EPOLLIN, c, true);
    }
}

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: upstream PORT\n");
        return 2;
    }
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), on = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[1])),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0) die("bind");
    if (listen(listener, 1024) < 0) die("listen");
    loop = epoll_create1(0);
    watch(EPOLL_CTL_ADD, listener, EPOLLIN, NULL, false);
    for (;;) {
        struct epoll_event events[256];
        int n = epoll_wait(loop, events, 256, -1);
        for (int i = 0; i < n; i++) {
            struct connection *c = (struct connection *)(uintptr_t)(events[i].data.u64 & ~1ULL);
            if (!c)
                on_accept(listener);
            else if (c->dead)
                continue;
            else if (events[i].data.u64 & 1)
                on_tick(c);
            else
                on_socket(c, events[i].events);
        }
        bury();
    }
}
