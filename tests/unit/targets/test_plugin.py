"""Targets that others write: found by name or by function, and their mistakes are told in words."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pinchpoint.errors import UsageError
from pinchpoint.prompt import Prompt
from pinchpoint.targets.plugin import make
from pinchpoint.targets.target import Chunk, TargetSpec

GOOD = """
from pinchpoint.targets.target import Chunk, Target, TargetSpec


class Echo(Target):
    name, path, stream = "echo", "/echo", False

    def __init__(self, spec):
        self.loud = spec.options.get("loud", False)

    def build(self, prompt):
        return (prompt.text.upper() if self.loud else prompt.text).encode()

    def parse_event(self, event, data):
        raise KeyError(data)

    def parse_answer(self, body):
        return Chunk(content=True, text=body.decode())


def make(spec: TargetSpec) -> Target:
    return Echo(spec)
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Puts a module, and a distribution that offers `make` of it under names, where Python looks."""
    monkeypatch.syspath_prepend(str(tmp_path))
    written: list[str] = []

    def install(module: str, code: str, *names: str, distribution: str = "tiny") -> None:
        (tmp_path / f"{module}.py").write_text(code)
        written.append(module)
        info = tmp_path / f"{distribution}-1.0.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        offered = "\n".join(f"{name} = {module}:make" for name in names)
        (info / "entry_points.txt").write_text(f"[pinchpoint.targets]\n{offered}\n")

    yield install
    for module in written:
        sys.modules.pop(module, None)


def spec(api: str, **options: object) -> TargetSpec:
    return TargetSpec(api, "m", options=options)


def test_a_plug_in_is_found_by_the_name_that_its_distribution_gives_it(plugin: Callable[..., None]) -> None:
    plugin("echo_by_name", GOOD, "echo")
    target = make(spec("plugin:echo", loud=True))
    assert (target.name, target.path, target.framing, target.needs_finish) == ("echo", "/echo", "sse", True)
    assert target.build(Prompt.of("hi", 1)) == b"HI"
    assert target.parse_answer(b"yes") == Chunk(content=True, text="yes")
    assert target.reader() is target
    assert target.template(b"data: x\n\n") is None


def test_a_plug_in_is_found_by_its_function(plugin: Callable[..., None]) -> None:
    plugin("echo_by_function", GOOD)
    assert make(spec("plugin:echo_by_function:make")).build(Prompt.of("hi", 1)) == b"hi"


def test_a_mistake_in_an_answer_ends_that_request_and_says_where(plugin: Callable[..., None]) -> None:
    plugin("echo_mistaken", GOOD, "echo")
    with pytest.raises(ValueError, match=r"echo: parse_event raised KeyError: b'x' \(echo_mistaken.py, line 15"):
        make(spec("plugin:echo")).parse_event(b"", b"x")


def test_a_reader_of_its_own_is_guarded_as_well(plugin: Callable[..., None]) -> None:
    code = GOOD.replace("    def build", "    def reader(self):\n        return Echo.__new__(Echo)\n\n    def build")
    plugin("echo_reader", code, "echo")
    target = make(spec("plugin:echo"))
    reader = target.reader()
    assert reader is not target
    with pytest.raises(ValueError, match="raised KeyError"):
        reader.parse_event(b"", b"x")


WRONG = [
    ("another name", GOOD, "plugin:eco", "there is no plug-in 'eco': installed are echo"),
    ("no module", GOOD, "plugin:nowhere_at_all:make", "there is no module 'nowhere_at_all'"),
    ("no function", GOOD, "plugin:{module}:made", "there is no 'made' in"),
    ("no name", GOOD, "plugin:a b:c", "names no function"),
    ("a syntax error", "def make(:", "plugin:echo", "import raised SyntaxError"),
    ("a failing import", "1 / 0", "plugin:echo", "import raised ZeroDivisionError: division by zero ("),
    ("no function under the name", "make = 3", "plugin:echo", "no function but a value of type int"),
    ("make raises", "def make(spec):\n    raise KeyError('x')", "plugin:echo", "make raised KeyError: 'x' ("),
    ("make takes nothing", "def make(): ...", "plugin:echo", "make raised TypeError"),
    ("make returns nothing", "def make(spec): ...", "plugin:echo", "make returned None, which has no name"),
    ("no path", GOOD.replace("/echo", "echo"), "plugin:echo", "path is 'echo', and must be"),
    ("a wrong framing", GOOD.replace("False\n", "False\n    framing = 'xml'\n", 1), "plugin:echo", "framing is 'xml'"),
    ("wrong headers", GOOD.replace("False\n", "False\n    headers = (1,)\n", 1), "plugin:echo", "headers is (1,)"),
    ("text for a body", GOOD.replace(").encode()", ")"), "plugin:echo", "build returned a value of type str, and must"),
    ("build raises", GOOD.replace("if self.loud", "if self.laud"), "plugin:echo", "build raised AttributeError"),
    ("its own complaint", "from pinchpoint.errors import UsageError\ndef make(spec):\n    raise UsageError('no!')",
     "plugin:echo", "no!"),
]  # fmt: skip


@pytest.mark.parametrize(("remark", "code", "api", "says"), WRONG)
def test_a_plug_in_that_does_not_work_is_told_before_any_load(
    plugin: Callable[..., None], remark: str, code: str, api: str, says: str
) -> None:
    module = f"wrong_{abs(hash((remark, says)))}"
    plugin(module, code, "echo")
    with pytest.raises(UsageError) as caught:
        make(spec(api.format(module=module)))
    assert says in str(caught.value)


def test_two_plug_ins_of_one_name_are_told_apart(plugin: Callable[..., None]) -> None:
    plugin("one_of_two", GOOD, "echo", distribution="one")
    plugin("two_of_two", GOOD, "echo", distribution="two")
    with pytest.raises(UsageError, match=r"several plug-ins are called 'echo'.*plugin:one_of_two:make"):
        make(spec("plugin:echo"))
    assert make(spec("plugin:two_of_two:make")).name == "echo"


def test_an_answer_that_is_no_chunk_is_told(plugin: Callable[..., None]) -> None:
    plugin("echo_text", GOOD.replace("Chunk(content=True, text=body.decode())", "body.decode()"), "echo")
    with pytest.raises(ValueError, match="parse_answer returned a value of type str, and must return a Chunk"):
        make(spec("plugin:echo")).parse_answer(b"yes")


def test_the_example_of_the_how_to_works_as_it_stands(plugin: Callable[..., None]) -> None:
    page = (Path(__file__).parents[3] / "docs" / "how-to" / "write-a-target.md").read_text()
    plugin("my_target", page.partition("```python\n")[2].partition("```")[0])
    target = make(spec("plugin:my_target:make", voice="loud"))
    assert b'"voice": "loud"' in target.build(Prompt.of("hi", 3))
    assert target.parse_event(b"", b'{"said": "x"}').text == "x"
    assert target.parse_answer(b'{"said": "x", "end": "stop"}').finish_reason == "stop"
