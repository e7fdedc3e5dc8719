"""Which parameters of a request an upstream is sent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.domain.call import Endpoint
from gateway.domain.snapshot import ParameterPolicy

#: openai-python 3.54, `CompletionCreateParams` of chat, completions and embeddings.
OPENAI: Mapping[Endpoint, frozenset[str]] = {
    Endpoint.CHAT: frozenset(
        """messages model audio frequency_penalty function_call functions logit_bias logprobs top_logprobs
        max_completion_tokens max_tokens metadata modalities moderation n parallel_tool_calls prediction
        presence_penalty prompt_cache_key prompt_cache_options prompt_cache_retention reasoning_effort
        response_format safety_identifier seed service_tier stop store stream stream_options temperature
        tool_choice tools top_p user verbosity web_search_options""".split()
    ),
    Endpoint.COMPLETIONS: frozenset(
        """model prompt best_of echo frequency_penalty logit_bias logprobs max_tokens n presence_penalty seed stop
        stream stream_options suffix temperature top_p user""".split()
    ),
    Endpoint.EMBEDDINGS: frozenset("input model dimensions encoding_format user".split()),
    Endpoint.TOKENIZE: frozenset(),
}

_VLLM_SAMPLING = frozenset(
    """top_k min_p repetition_penalty length_penalty min_tokens ignore_eos stop_token_ids bad_words allowed_token_ids
    skip_special_tokens spaces_between_special_tokens include_stop_str_in_output truncate_prompt_tokens prompt_logprobs
    add_special_tokens structured_outputs priority request_id cache_salt session_id kv_transfer_params logits_processors
    return_tokens_as_token_ids return_token_ids vllm_xargs repetition_detection stream_interval
    use_beam_search""".split()
)

#: vLLM 0.32's request protocol on top of OpenAI's.
VLLM: Mapping[Endpoint, frozenset[str]] = {
    Endpoint.CHAT: OPENAI[Endpoint.CHAT]
    | _VLLM_SAMPLING
    | frozenset(
        """echo add_generation_prompt continue_final_message documents chat_template chat_template_kwargs
        mm_processor_kwargs media_io_kwargs thinking_token_budget include_reasoning""".split()
    ),
    Endpoint.COMPLETIONS: OPENAI[Endpoint.COMPLETIONS] | _VLLM_SAMPLING | frozenset({"response_format"}),
    Endpoint.EMBEDDINGS: OPENAI[Endpoint.EMBEDDINGS]
    | frozenset(
        """messages truncate_prompt_tokens add_special_tokens priority request_id normalize embed_dtype chat_template
        chat_template_kwargs add_generation_prompt continue_final_message cache_salt""".split()
    ),
    Endpoint.TOKENIZE: frozenset(
        """model prompt messages add_special_tokens return_token_strs add_generation_prompt continue_final_message
        chat_template chat_template_kwargs tools""".split()
    ),
}

_OLLAMA_SAMPLING = frozenset(
    """model stream stream_options n temperature top_p top_k min_p typical_p seed stop frequency_penalty
    presence_penalty repeat_penalty repetition_penalty repeat_last_n num_keep num_predict max_tokens
    max_completion_tokens""".split()
)

#: What has a counterpart in Ollama's API.  `num_ctx` and `keep_alive` decide over the server's memory: they are the
#: operator's, unless `parameters.allow` gives them to clients.
OLLAMA: Mapping[Endpoint, frozenset[str]] = {
    Endpoint.CHAT: _OLLAMA_SAMPLING
    | frozenset(
        "messages tools tool_choice response_format format logprobs top_logprobs think reasoning_effort user".split()
    ),
    Endpoint.COMPLETIONS: _OLLAMA_SAMPLING | frozenset("prompt suffix logprobs user".split()),
    Endpoint.EMBEDDINGS: frozenset("model input dimensions encoding_format user".split()),
}


def select(
    body: Mapping[str, Any], known: frozenset[str], policy: ParameterPolicy
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What is sent, and the names of the client's parameters that are not.

    A parameter of another engine is no error: clients with one setting for all their models send them everywhere.
    """
    if not policy.rename and not policy.drop and not policy.set and known.issuperset(body):
        return dict(body), ()
    everything = "*" in policy.allow
    sent: dict[str, Any] = {}
    dropped = []
    for name, value in body.items():
        name = policy.rename.get(name, name)
        if name in policy.drop or not (everything or name in known or name in policy.allow):
            dropped.append(name)
        else:
            sent[name] = value
    sent.update(policy.set)
    return sent, tuple(dropped)
