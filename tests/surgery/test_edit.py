"""One call more in the text of a method, and nothing else."""

from __future__ import annotations

import ast
import inspect
import random
import textwrap
from pathlib import Path
from typing import Any

import pytest
from torchvision.models.densenet import _DenseLayer
from torchvision.models.efficientnet import MBConv
from torchvision.models.googlenet import GoogLeNet
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.models.shufflenetv2 import InvertedResidual

from se_inject.surgery.classes import generated
from se_inject.surgery.edit import Edit, indented, is_name, returned, rewrite
from se_inject.trace.source import expression_at, method_source, parse, self_name
from tests.tiny import at, changes

METHOD = '''    def forward(self, x, scale=1.0):  # the entry
        """Says what it does."""
        y = self.bn1(self.conv1(x))  # first
        y = self.bn2(
            self.conv2(y),
        )

        # the sum
        x += y * scale
        return self.act(x)
'''


def edit(text: str, *places: tuple[str, str] | tuple[str, str, int]) -> str:
    return rewrite(text, tuple(Edit(place[0], at(text, *place[1:])) for place in places))


def test_one_expression() -> None:
    text = edit(METHOD, ("se", "self.bn1(self.conv1(x))"))
    assert changes(METHOD, text) == [
        ("y = self.bn1(self.conv1(x))  # first", "y = self.se(self.bn1(self.conv1(x)))  # first")
    ]


def test_an_expression_over_several_lines() -> None:
    text = edit(METHOD, ("se", "self.bn2(\n            self.conv2(y),\n        )"))
    assert changes(METHOD, text) == [("y = self.bn2(", "y = self.se(self.bn2("), (")", "))")]


def test_columns_are_bytes() -> None:
    method = '    def forward(self, x):\n        größe = "ß→", self.bn(x, "日本")  # ça\n        return größe[1]\n'
    text = edit(method, ("se", 'self.bn(x, "日本")'))
    assert changes(method, text) == [
        ('größe = "ß→", self.bn(x, "日本")  # ça', 'größe = "ß→", self.se(self.bn(x, "日本"))  # ça')
    ]


def test_two_edits_in_one_method() -> None:
    text = edit(METHOD, ("se", "self.act(x)"), ("se_1", "self.bn1(self.conv1(x))"))
    assert [new for _, new in changes(METHOD, text)] == [
        "y = self.se_1(self.bn1(self.conv1(x)))  # first",
        "return self.se(self.act(x))",
    ]


def test_the_same_place_twice_the_first_edit_is_the_innermost() -> None:
    text = edit(METHOD, ("a", "self.act(x)"), ("b", "self.act(x)"))
    assert changes(METHOD, text) == [("return self.act(x)", "return self.b(self.a(self.act(x)))")]


def test_an_expression_inside_another() -> None:
    for places in (
        (("a", "self.conv1(x)"), ("b", "self.bn1(self.conv1(x))")),
        (("b", "self.bn1(self.conv1(x))"), ("a", "self.conv1(x)")),
    ):
        assert changes(METHOD, edit(METHOD, *places))[0][1] == "y = self.b(self.bn1(self.a(self.conv1(x))))  # first"


def test_an_augmented_assignment() -> None:
    text = edit(METHOD, ("se", "x += y * scale"))
    assert changes(METHOD, text) == [("x += y * scale", "x += y * scale; x = self.se(x)")]


def test_an_augmented_assignment_with_an_edit_inside_and_twice() -> None:
    method = "    def forward(self, x, y):\n        if y: self.out[0] += self.bn(y)  # sum\n        return self.out\n"
    text = edit(
        method,
        ("a", "self.out[0] += self.bn(y)"),
        ("inner", "self.bn(y)"),
        ("b", "self.out[0] += self.bn(y)"),
    )
    assert changes(method, text)[0][1] == (
        "if y: self.out[0] += self.inner(self.bn(y)); self.out[0] = self.a(self.out[0]); "
        "self.out[0] = self.b(self.out[0])  # sum"
    )


def test_every_returned_value_but_those_of_nested_functions() -> None:
    method = textwrap.indent(
        textwrap.dedent(
            """
            def forward(self, x):
                def helper(y):
                    return y + 1
                class Local:
                    def forward(self): return 1
                twice = lambda z: z * 2
                for _ in range(2):
                    if x.sum() > 0:
                        return (
                            helper(x)
                        )
                return twice(x)  # last
            """
        ).lstrip(),
        "    ",
    )
    assert len(returned(parse(method))) == 2
    assert changes(method, rewrite(method, (Edit("se"),))) == [
        ("helper(x)", "self.se(helper(x))"),
        ("return twice(x)  # last", "return self.se(twice(x))  # last"),
    ]


def test_no_value_returned() -> None:
    with pytest.raises(ValueError, match="returns no value"):
        rewrite("    def forward(self, x):\n        self.out = x\n        return\n", (Edit("se"),))


@pytest.mark.parametrize("head", ["module, x", "module, /, x", "module, *rest, x=0"])
def test_the_name_of_self_is_the_methods_own(head: str) -> None:
    method = f"    def forward({head}):\n        return module.bn(x)\n"
    assert "return module.se(module.bn(x))" in edit(method, ("se", "module.bn(x)"))


def test_no_name_for_self() -> None:
    with pytest.raises(ValueError, match="does not name the module"):
        self_name(parse("    def forward(*args):\n        return args[0].bn(args[1])\n"))


def test_a_place_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="no expression at line 3, column 12"):
        edit(METHOD, ("se", "self.bn1(self.conv1(x)"))


@pytest.mark.parametrize(
    "name", ["a.b", "1", "class", "__se", "a b", "", "sé", 'x if getattr(__import__("os"), "mkdir")("C") else self']
)
def test_nothing_but_a_name_gets_into_the_code(name: str) -> None:
    assert not is_name(name)
    for position in (at(METHOD, "self.act(x)"), None):
        with pytest.raises(ValueError, match="is not a name"):
            rewrite(METHOD, (Edit(name, position),))


@pytest.mark.parametrize("name", ["se", "se_1", "_se", "attn"])
def test_names(name: str) -> None:
    assert is_name(name)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("    forward = lambda self, x: x\n", "not a plain method"),
        ("    async def forward(self, x): return x\n", "not a plain method"),
        ("    def forward(self, x): return x +\n", "cannot be parsed by itself"),
    ],
)
def test_what_is_no_plain_method(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse(text)


def test_source_that_cannot_be_read() -> None:
    namespace: dict[str, Any] = {}
    exec("def forward(self, x):\n    return x\n", namespace)
    with pytest.raises(ValueError, match="the source of forward cannot be read"):
        method_source(namespace["forward"].__code__)


def test_equal_code_in_two_files_has_two_texts(tmp_path: Path) -> None:
    """Code objects are equal when only a comment differs."""
    functions = []
    for i in (1, 2):
        path = tmp_path / f"file{i}.py"
        path.write_text(f"def forward(self, x):\n    return x  # {i}\n")
        namespace: dict[str, Any] = {}
        exec(compile(path.read_text(), str(path), "exec"), namespace)
        functions.append(namespace["forward"].__code__)
    assert functions[0] == functions[1]
    assert [method_source(code)[0].split("# ")[1] for code in functions] == ["1\n", "2\n"]
    assert method_source(functions[0])[1] != method_source(functions[1])[1]


def test_a_function_of_the_module_as_method() -> None:
    method = "def forward(self, x):\n    return self.bn(x)\n"
    text = edit(method, ("se", "self.bn(x)"))
    assert text == "def forward(self, x):\n    return self.se(self.bn(x))\n"
    assert indented(text) == "    def forward(self, x):\n        return self.se(self.bn(x))\n"


@pytest.mark.parametrize("margin", ["  ", "\t", "        ", ""])
def test_a_method_at_another_margin(margin: str) -> None:
    """Its strings keep their value, and a comment at the margin of the file does not hinder."""
    lines = [
        "def forward(self, x):",
        "  y = '''one",
        "    two",
        "three'''",
        "",
        "# margin",
        "  return self.act(x) if y else x",
    ]
    text = "\n".join(line if i in (2, 3, 4, 5) else margin + line for i, line in enumerate(lines)) + "\n"
    moved = indented(edit(text, ("se", "self.act(x)")))
    assert moved.startswith("    def forward(self, x):\n")
    (function,) = ast.parse(f"class C:\n{moved}").body[0].body  # type: ignore[attr-defined]
    assert function.body[0].value.value == "one\n    two\nthree"
    assert ast.unparse(function.body[1]) == "return self.se(self.act(x)) if y else x"
    assert "# margin" in moved


def test_a_method_at_the_usual_margin_stays_as_it_is() -> None:
    assert indented(METHOD) is METHOD


METHODS = [
    Bottleneck.forward,
    ResNet._forward_impl,
    MBConv.forward,
    InvertedResidual.forward,
    GoogLeNet._forward,
    _DenseLayer.bn_function,
]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__qualname__)
def test_taking_the_calls_out_again_gives_the_original(method: object) -> None:
    """Whatever set of expressions is wrapped: the tree without the inserted calls is the original tree."""
    text, digest = method_source(inspect.unwrap(method).__code__)  # type: ignore[arg-type]
    function = parse(text)
    calls = [node for node in ast.walk(function) if isinstance(node, ast.Call | ast.BinOp)]
    assert calls
    rng = random.Random(0)

    class Strip(ast.NodeTransformer):
        def visit_Call(self, node: ast.Call) -> ast.AST:
            self.generic_visit(node)
            inserted = isinstance(node.func, ast.Attribute) and node.func.attr.startswith("inserted")
            return node.args[0] if inserted else node

    for _ in range(10):
        chosen = [rng.choice(calls) for _ in range(3)]
        edits = []
        for i, node in enumerate(chosen):
            assert node.end_lineno is not None and node.end_col_offset is not None
            place = at(text, text.splitlines()[0])  # any position, filled below
            span = (node.lineno - 2, node.col_offset, node.end_lineno - 2, node.end_col_offset)
            place = type(place)("m", "C", "forward", *span, digest)
            assert expression_at(function, place) is node
            edits.append(Edit(f"inserted{i}", place))
        new = rewrite(text, tuple(edits))
        assert new.count("self.inserted") == 3
        assert ast.dump(Strip().visit(parse(new))) == ast.dump(function)


def test_generated_source_is_the_rewritten_method() -> None:
    text, digest = method_source(Bottleneck.forward.__code__)
    place = at(text, "self.bn3(out)", digest=digest)
    cls = generated(Bottleneck, (Edit("se", place),))
    assert vars(cls)["se_rewrite"].after == f"class SEBottleneck(Bottleneck):\n{rewrite(text, (Edit('se', place),))}"
