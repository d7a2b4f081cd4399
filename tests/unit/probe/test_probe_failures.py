"""Everything that can be wrong with a target ends in one sentence that says what to do."""

import json
import socket
import time
from collections.abc import Callable

import pytest
from fake_engine import Answer, FakeEngine, model_list
from hypothesis import given
from hypothesis import strategies as st

from pinchpoint import fetch
from pinchpoint.errors import EXIT_UNREACHABLE, EXIT_USAGE, PinchpointError, TargetError, UsageError
from pinchpoint.probe import local, probe
from pinchpoint.probe.address import parse_address
from pinchpoint.probe.exchange import Exchange, Page, Unanswered
from pinchpoint.probe.limits import Collected, read_limits
from pinchpoint.probe.local import listening_pids
from pinchpoint.probe.text import clean

StartRaw = Callable[[Callable[[socket.socket], None]], str]


# -- the URL -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "url"),
    [
        ("http://h:8000", "http://h:8000"),
        ("http://h:8000/", "http://h:8000"),
        ("http://h:8000/v1", "http://h:8000"),
        ("http://h:8000/v1/", "http://h:8000"),
        ("http://h:8000/v1/chat/completions", "http://h:8000"),
        ("https://h/llm/v1", "https://h/llm"),
        ("https://h:443/llm", "https://h/llm"),
        (" http://H:80 ", "http://h"),
        ("http://[::1]:8000/v1", "http://[::1]:8000"),
    ],
)
def test_a_url_is_reduced_to_the_base_that_paths_go_behind(typed: str, url: str) -> None:
    assert parse_address(typed).url == url


@pytest.mark.parametrize(
    ("typed", "complaint"),
    [
        ("localhost:8000", "does not start with http"),
        ("ftp://h", "does not start with http"),
        ("", "does not start with http"),
        ("http://", "names no host"),
        ("http://h:99999", "cannot be read"),
        ("http://h:0", "port 0"),
        ("http://[::1", "cannot be read"),
        ("http://h/?key=1", "query or fragment"),
    ],
)
def test_a_url_that_cannot_be_used_is_wrong_usage(typed: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint) as error:
        probe(typed)
    assert error.value.exit_code == EXIT_USAGE


def test_credentials_in_the_url_are_refused_and_not_repeated() -> None:
    with pytest.raises(UsageError) as error:
        probe("http://user:hunter2@host/")
    assert "hunter2" not in str(error.value)
    assert "--api-key-env" in str(error.value)


@given(st.text())
def test_no_text_given_as_url_gives_anything_but_a_sentence(text: str) -> None:
    try:
        parse_address(text)
    except PinchpointError as error:
        assert "\n" not in str(error)


# -- reaching it ---------------------------------------------------------------------------------------------------


def test_nothing_listening_is_said(free_port: int) -> None:
    with pytest.raises(TargetError, match="nothing listens on") as error:
        probe(f"http://127.0.0.1:{free_port}")
    assert error.value.exit_code == EXIT_UNREACHABLE


def test_a_name_without_address_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_address(*args: object, **kwargs: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_address)
    with pytest.raises(TargetError, match="host name model-server has no address"):
        probe("http://model-server:8000")


def test_silence_is_a_timeout(raw_server: StartRaw) -> None:
    url = raw_server(lambda connection: time.sleep(1.0))
    with pytest.raises(TargetError, match=r"did not answer within 0\.2 s"):
        probe(url, timeout_s=0.2)


def test_a_trickle_of_headers_is_a_timeout(raw_server: StartRaw) -> None:
    def trickle(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n")
        for n in range(100):
            connection.sendall(f"X-{n}: 1\r\n".encode())
            time.sleep(0.02)

    with pytest.raises(TargetError, match="did not answer within"):
        probe(raw_server(trickle), timeout_s=0.2)


def test_a_protocol_that_is_not_http_is_said(raw_server: StartRaw) -> None:
    url = raw_server(lambda connection: connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n"))
    with pytest.raises(TargetError, match="not in HTTP"):
        probe(url)


def test_a_connection_closed_at_once_is_said(raw_server: StartRaw) -> None:
    with pytest.raises(TargetError, match="closed the connection"):
        probe(raw_server(lambda connection: None))


def test_https_to_a_plain_port_suggests_http(engine: FakeEngine) -> None:
    with pytest.raises(TargetError, match="use http://"):
        probe(engine.url.replace("http://", "https://"))


def test_a_redirect_names_where_to(engine: FakeEngine) -> None:
    engine.headers = {"Location": "https://elsewhere/v1/models"}
    engine.pages = {"/v1/models": (308, "")}
    with pytest.raises(TargetError, match="redirects to https://elsewhere/v1/models"):
        probe(engine.url)


def test_a_server_that_is_no_llm_service_is_named_by_what_it_answered(engine: FakeEngine) -> None:
    engine.headers = {"Server": "nginx/1.22.1"}
    engine.pages = {"/": "Welcome to nginx!"}
    engine.generate = lambda path, payload: Answer("<html>405</html>", 405, "text/html")
    with pytest.raises(
        TargetError, match=r"no LLM service known here: / answered HTTP 200: Welcome to nginx!.*nginx/1"
    ):
        probe(engine.url)


def test_a_slow_service_is_not_asked_for_ever(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    real_get = Exchange.get

    def get(self: Exchange, path: str, **options: object):
        asked.append(path)
        if path not in ("/v1/models", "/health"):
            raise Unanswered("timeout", "too slow")
        return real_get(self, path, **options)  # pyright: ignore

    monkeypatch.setattr(Exchange, "get", get)
    engine.pages = {"/v1/models": model_list("m"), "/health": "ok"}
    facts = probe(engine.url)
    assert facts.engine == "openai-compatible"
    assert len(asked) < 8
    assert any("evidence may be missing" in sentence for sentence in facts.unknown)


# -- the key -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "complaint"), [(None, "wants an API key"), ("sk-wrong", "does not accept the API key")]
)
def test_a_locked_door_says_how_to_give_a_key_and_never_shows_one(
    engine: FakeEngine, key: str | None, complaint: str
) -> None:
    engine.required_key = "sk-right"
    with pytest.raises(TargetError, match=complaint) as error:
        probe(engine.url, api_key=key)
    assert "--api-key-env NAME or --api-key-file FILE" in str(error.value)
    assert "sk-" not in str(error.value)


def test_the_right_key_opens(engine: FakeEngine) -> None:
    engine.required_key = "sk-right"
    engine.pages = {"/v1/models": model_list("m")}
    facts = probe(engine.url, api_key="sk-right")
    assert facts.model == "m"
    assert "sk-right" not in repr(facts)


def test_a_key_that_is_echoed_in_an_error_is_masked(engine: FakeEngine) -> None:
    engine.pages = {"/v1/models": model_list("m")}
    engine.generate = lambda path, payload: Answer({"error": {"message": "key sk-right has no quota"}}, 500)
    with pytest.raises(TargetError, match=r"key \*\*\* has no quota"):
        probe(engine.url, api_key="sk-right")


@pytest.mark.parametrize("key", ["", "sk\n", "schlüssel"])
def test_a_key_that_cannot_stand_in_a_header_is_refused_without_showing_it(key: str) -> None:
    with pytest.raises(UsageError, match="no HTTP header may carry") as error:
        probe("http://127.0.0.1:1", api_key=key)
    assert not key or key not in str(error.value)


# -- hostile answers -----------------------------------------------------------------------------------------------


def test_control_characters_and_endless_names_do_not_reach_the_facts(engine: FakeEngine) -> None:
    engine.pages = {
        "/v1/models": model_list("good", "ev\x1b[31mil", "x" * 5000, owned_by="vllm"),
        "/version": {"version": "1.0\x1b]0;pwned\x07\u202e" + "y" * 5000},
    }
    facts = probe(engine.url)
    assert facts.models == ("good",)
    assert facts.engine_version is not None
    assert facts.engine_version.isprintable()
    assert len(facts.engine_version) <= 200


@pytest.mark.parametrize(
    "models",
    [[], {}, {"data": 3}, {"data": [1, None]}, {"data": [{"id": ["x"], "owned_by": {}}]}, "text", {"data": "x"}],
)
def test_a_model_list_of_any_shape_is_survived(engine: FakeEngine, models: object) -> None:
    engine.pages = {"/v1/models": json.dumps(models)}
    facts = probe(engine.url)
    assert (facts.models, facts.model) == ((), None)
    assert any(sentence.startswith("model:") for sentence in facts.unknown)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=5) | st.integers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.dictionaries(
        st.sampled_from(
            "internal_states max_running_requests context_length chunked_prefill_size total_slots max_total_tokens "
            "default_generation_settings max_concurrent_requests data".split()
        ),
        json_values,
    ),
    st.text(max_size=40),
)
def test_limits_are_positive_numbers_or_unknown_whatever_the_pages_hold(content: dict[str, object], text: str) -> None:
    body = json.dumps(content).encode()
    paths = ("/v1/models", "/info", "/props", "/get_server_info")
    pages = {path: Page(path, 200, {}, body, True) for path in paths}
    metrics = Page("/metrics", 200, {}, f"vllm:cache_config_info{{{text}}} 1\n".encode("utf-8", "replace"), True)
    for name in ("vllm", "sglang", "tgi", "llama.cpp", "tensorrt-llm", "triton", "unheard-of"):
        told = read_limits(name, Collected(pages, metrics, None))
        values = [getattr(told.limits, field) for field in told.limits.__struct_fields__]
        assert all(value is None or value > 0 for value in values)
        assert len(told.sources) == sum(value is not None for value in values)


def test_a_body_without_end_is_cut(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "READ_BYTES", 100)
    engine.pages = {"/big": "x" * 10_000}
    page = Exchange(parse_address(engine.url), None, 2.0).get("/big", max_bytes=1000)
    assert (len(page.body), page.complete) == (1000, False)


@given(st.text())
def test_cleaned_text_is_printable_and_short(text: str) -> None:
    cleaned = clean(text, max_chars=50)
    assert len(cleaned) <= 50
    assert cleaned.isprintable()


def test_the_metrics_page_of_a_prefixed_service_may_be_at_the_root(engine: FakeEngine) -> None:
    engine.generate = lambda path, payload: Answer({"choices": []})
    engine.pages = {"/llm/v1/models": model_list("m", owned_by="vllm"), "/metrics": "vllm:num_requests_running 0\n"}
    facts = probe(engine.url + "/llm/v1")
    assert facts.url == engine.url + "/llm"
    assert facts.metrics_url == engine.url + "/metrics"


# -- processes -----------------------------------------------------------------------------------------------------


def test_another_machine_has_no_pids_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    far = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.7", 8000))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: far)
    pids, note = listening_pids(parse_address("http://far:8000"))
    assert pids == ()
    assert "another machine" in (note or "")


def test_a_local_port_without_visible_process_is_said(free_port: int) -> None:
    pids, note = listening_pids(parse_address(f"http://127.0.0.1:{free_port}"))
    assert pids == ()
    assert f"port {free_port}" in (note or "")


def test_a_container_forwarder_is_not_taken_for_the_service(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_name", lambda pid: "docker-proxy")
    pids, note = listening_pids(parse_address(engine.url))
    assert len(pids) == 1
    assert "forwarder" in (note or "")
