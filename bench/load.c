/* The load generator of `make bench`: one thread, epoll, HTTP/1.1 with keep-alive.
 *
 *   load --port N --body FILE [--header "Name: value"]... [--expect FILE]
 *        [--connections 1] [--seconds 1] [--ramp 0] [--patience 60]
 *
 * Each connection posts the body to 127.0.0.1:N/v1/chat/completions, reads the answer, and begins anew; after `seconds`
 * nothing new is begun and what runs is read to its end, so that every answer counted was whole and nobody was cut off.
 * Connections begin evenly over `ramp` seconds: streams that all tick together would flatter whoever joins writes.
 * An answer that is not there `patience` seconds after that ends the run as a failure.
 *
 * What counts of an answer is its payload: of JSON the body, of a stream its `data:` lines, each with a newline. With
 * --expect, every answer's payload is compared with the file's bytes; "altered" counts those that differ.
 *
 * Prints one JSON object: answers, altered, chunks (data lines but [DONE]), seconds, and p50 and p99 in milliseconds of
 * the first byte (of the payload: headers and comments that a proxy sends early don't count) and of the whole answer.
 * Exit status 1: a failed answer (the reason is on stderr); 2: wrong usage.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { LINE_MAX_BYTES = 1 << 16, READ_BYTES = 1 << 16 };

enum part { HEAD, BODY, CHUNK_SIZE, CHUNK_DATA, CHUNK_END, TRAILER };

struct connection {
    int fd;
    enum part part;
    bool busy, chunked, events; /* events: the answer is a stream of server-sent events */
    bool differs;
    size_t left;   /* bytes that are still to come of the body or of the HTTP chunk */
    size_t length; /* of the line that is being gathered */
    size_t seen;   /* bytes of the payload so far */
    double began, first_byte;
    char line[LINE_MAX_BYTES]; /* a line of the head or of the framing */
    char event[LINE_MAX_BYTES];
    size_t event_length;
};

struct samples {
    double *values;
    size_t count, size;
};

static struct {
    int port, connections;
    double seconds, ramp, patience;
    char *request, *expected;
    size_t request_size, expected_size;
} plan = {.connections = 1, .seconds = 1, .patience = 60};

static struct {
    size_t answers, altered, chunks;
    struct samples first_byte, whole;
} result;

static int loop;

static void __attribute__((noreturn, format(printf, 1, 2))) fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("load: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit(1);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void add(struct samples *s, double value) {
    if (s->count == s->size) {
        s->size = s->size ? s->size * 2 : 1024;
        s->values = realloc(s->values, s->size * sizeof *s->values);
        if (!s->values) fail("out of memory");
    }
    s->values[s->count++] = value;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Sorts in place. The nearest rank, without interpolation. */
static double percentile(struct samples *s, double percent) {
    if (!s->count) return 0;
    qsort(s->values, s->count, sizeof *s->values, ascending);
    return s->values[(size_t)((double)(s->count - 1) * percent / 100 + 0.5)];
}

/* ---- one request ---- */

static void dial(struct connection *c) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)plan.port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    int on = 1;
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&address, sizeof address) < 0)
        fail("cannot connect to port %d: %s", plan.port, strerror(errno));
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (epoll_ctl(loop, EPOLL_CTL_ADD, c->fd, &event) < 0) fail("epoll_ctl: %s", strerror(errno));
}

static void begin(struct connection *c) {
    if (c->fd < 0) dial(c);
    c->part = HEAD;
    c->busy = true;
    c->chunked = c->events = c->differs = false;
    c->length = c->event_length = c->seen = 0;
    c->left = SIZE_MAX; /* without a stated length, what comes until the close is the body: refused in end_of_head */
    c->first_byte = 0;
    c->began = now();
    for (size_t sent = 0; sent < plan.request_size;) {
        ssize_t n = send(c->fd, plan.request + sent, plan.request_size - sent, MSG_NOSIGNAL);
        if (n < 0) fail("cannot send a request: %s", strerror(errno));
        sent += (size_t)n;
    }
}

static void end_of_answer(struct connection *c) {
    double end = now();
    if (!c->seen) fail("an answer was empty");
    if (plan.expected && c->seen != plan.expected_size) c->differs = true;
    result.answers++;
    result.altered += c->differs;
    add(&result.first_byte, c->first_byte - c->began);
    add(&result.whole, end - c->began);
    c->busy = false;
}

/* ---- its answer ---- */

static void take_payload(struct connection *c, const char *bytes, size_t n) {
    if (!c->seen) c->first_byte = now();
    if (plan.expected && (c->seen + n > plan.expected_size || memcmp(plan.expected + c->seen, bytes, n) != 0))
        c->differs = true;
    c->seen += n;
}

static void take_body(struct connection *c, const char *bytes, size_t n) {
    if (!c->events) {
        take_payload(c, bytes, n);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        if (c->event_length == sizeof c->event) fail("a line of a stream is longer than %zu bytes", sizeof c->event);
        c->event[c->event_length++] = bytes[i];
        if (bytes[i] != '\n') continue;
        if (c->event_length > 5 && memcmp(c->event, "data:", 5) == 0) {
            take_payload(c, c->event, c->event_length);
            if (!memmem(c->event, c->event_length, "[DONE]", 6)) result.chunks++;
        }
        c->event_length = 0;
    }
}

static void end_of_head(struct connection *c, const char *head) {
    int status = 0;
    sscanf(head, "HTTP/1.%*d %d", &status);
    if (status != 200) fail("answered %d\n%s", status, head);
    const char *type = strcasestr(head, "\ncontent-type:"), *length = strcasestr(head, "\ncontent-length:");
    c->events = type && strncasecmp(type + 14 + strspn(type + 14, " "), "text/event-stream", 17) == 0;
    c->chunked = strcasestr(head, "\ntransfer-encoding: chunked") != NULL;
    if (length)
        c->left = strtoul(length + 16, NULL, 10);
    else if (!c->chunked)
        fail("the answer has neither a length nor chunks\n%s", head);
    c->part = c->chunked ? CHUNK_SIZE : BODY;
    c->length = 0;
}

/* Gathers one line; true when it is whole, without its CRLF and with a NUL. */
static bool gather(struct connection *c, const char **at, const char *end) {
    while (*at < end) {
        if (c->length + 1 == sizeof c->line) fail("a line of the answer's framing is too long");
        c->line[c->length++] = *(*at)++;
        if (c->line[c->length - 1] != '\n') continue;
        c->line[c->length] = '\0';
        return true;
    }
    return false;
}

static void take(struct connection *c, const char *at, size_t n) {
    const char *end = at + n;
    while (at < end) {
        if (!c->busy) fail("%zu bytes more than the answer: %.*s", (size_t)(end - at), (int)(end - at), at);
        switch (c->part) {
        case HEAD: /* all header lines stay in `line` until the empty one */
            if (gather(c, &at, end) && c->length >= 4 && memcmp(c->line + c->length - 4, "\r\n\r\n", 4) == 0)
                end_of_head(c, c->line);
            break;
        case CHUNK_SIZE:
            if (!gather(c, &at, end)) break;
            c->left = strtoul(c->line, NULL, 16);
            c->part = c->left ? CHUNK_DATA : TRAILER;
            c->length = 0;
            break;
        case BODY:
        case CHUNK_DATA: {
            size_t part = c->left < (size_t)(end - at) ? c->left : (size_t)(end - at);
            take_body(c, at, part);
            at += part;
            c->left -= part;
            if (c->left) break;
            if (c->part == BODY)
                end_of_answer(c);
            else
                c->part = CHUNK_END;
            break;
        }
        case CHUNK_END:
            if (!gather(c, &at, end)) break;
            c->part = CHUNK_SIZE;
            c->length = 0;
            break;
        case TRAILER:
            if (!gather(c, &at, end)) break;
            if (c->length == 2) end_of_answer(c);
            c->length = 0;
            break;
        }
    }
}

static void on_readable(struct connection *c) {
    static char buffer[READ_BYTES];
    ssize_t n = recv(c->fd, buffer, sizeof buffer, MSG_DONTWAIT);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0 && c->busy) fail("the connection was closed %zu bytes into an answer", c->seen);
    if (n <= 0) {
        close(c->fd);
        c->fd = -1;
        return;
    }
    take(c, buffer, (size_t)n);
}

/* ---- the run ---- */

static void run(void) {
    struct connection *all = calloc((size_t)plan.connections, sizeof *all);
    if (!all) fail("out of memory");
    double start = now(), stop = start + plan.seconds;
    int started = 0, busy = 0;
    while (busy || started < plan.connections) {
        double t = now();
        while (started < plan.connections && t >= start + plan.ramp * started / plan.connections) {
            all[started].fd = -1;
            begin(&all[started++]);
            busy++;
        }
        if (t > stop + plan.patience) fail("%d answers are not there %.0f s after the last request", busy, plan.patience);
        struct epoll_event events[256];
        int n = epoll_wait(loop, events, 256, started < plan.connections ? 1 : 1000);
        for (int i = 0; i < n; i++) {
            struct connection *c = events[i].data.ptr;
            bool was_busy = c->busy;
            on_readable(c);
            if (!was_busy || c->busy) continue;
            if (now() < stop)
                begin(c);
            else
                busy--;
        }
    }
    printf("{\"answers\": %zu, \"altered\": %zu, \"chunks\": %zu, \"seconds\": %.3f, "
           "\"first_byte_ms\": {\"p50\": %.3f, \"p99\": %.3f}, \"whole_ms\": {\"p50\": %.3f, \"p99\": %.3f}}\n",
           result.answers, result.altered, result.chunks, now() - start, percentile(&result.first_byte, 50) * 1e3,
           percentile(&result.first_byte, 99) * 1e3, percentile(&result.whole, 50) * 1e3, percentile(&result.whole, 99) * 1e3);
}

static char *read_file(const char *path, size_t *size) {
    FILE *file = fopen(path, "rb");
    if (!file) fail("%s: %s", path, strerror(errno));
    fseek(file, 0, SEEK_END);
    *size = (size_t)ftell(file);
    rewind(file);
    char *bytes = malloc(*size + 1);
    if (!bytes || fread(bytes, 1, *size, file) != *size) fail("%s: cannot be read", path);
    fclose(file);
    return bytes;
}

int main(int argc, char **argv) {
    static const struct option options[] = {
        {"port", 1, NULL, 'p'},        {"body", 1, NULL, 'b'},    {"header", 1, NULL, 'h'}, {"expect", 1, NULL, 'e'},
        {"connections", 1, NULL, 'c'}, {"seconds", 1, NULL, 's'}, {"ramp", 1, NULL, 'r'},   {"patience", 1, NULL, 'w'},
        {NULL, 0, NULL, 0},
    };
    char headers[4096] = "", *body = NULL;
    size_t body_size = 0;
    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        switch (option) {
        case 'p': plan.port = atoi(optarg); break;
        case 'b': body = read_file(optarg, &body_size); break;
        case 'e': plan.expected = read_file(optarg, &plan.expected_size); break;
        case 'c': plan.connections = atoi(optarg); break;
        case 's': plan.seconds = atof(optarg); break;
        case 'r': plan.ramp = atof(optarg); break;
        case 'w': plan.patience = atof(optarg); break;
        case 'h':
            if (strlen(headers) + strlen(optarg) + 3 > sizeof headers) fail("the headers are too long");
            strcat(strcat(headers, optarg), "\r\n");
            break;
        default: return 2;
        }
    }
    if (!plan.port || !body || plan.connections < 1) {
        fprintf(stderr, "load: --port, --body and at least one connection are needed\n");
        return 2;
    }
    plan.request = malloc(sizeof headers + body_size + 256);
    if (!plan.request) fail("out of memory");
    int head = sprintf(plan.request,
                       "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\n"
                       "%sContent-Length: %zu\r\n\r\n",
                       plan.port, headers, body_size);
    memcpy(plan.request + head, body, body_size);
    plan.request_size = (size_t)head + body_size;
    loop = epoll_create1(0);
    run();
    return 0;
}
