"""Taste as a test: import law, sizes, docstrings, forbidden calls; prints our own row."""

from __future__ import annotations

import ast
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "catalog": set(),
    "model_serving": {"catalog"},
    "change_detection": {"catalog"},
    "inventory_engine": {"catalog", "model_serving", "change_detection"},
}
# Calls that need a reason, and the modules that have one.
FORBIDDEN = {
    "rasterio.open": {
        "catalog.assets",
        "catalog.simulation",
        "model_serving.regions",
        "model_serving.datasets.rasters",
    },
    # ^ regions reads the truth rasters that the simulation has just written, datasets the images of
    #   benchmarks that a user has on disk
    "urlopen": set(),
    "requests.get": set(),
    "requests.post": set(),
    "Client.open": {"catalog.search"},
    "torch.load": set(),
    "pickle.load": set(),
    "pickle.loads": set(),
    "pickle.dumps": set(),
    "joblib.load": set(),
    "eval": set(),
    "exec": set(),
    "pydoc.locate": set(),
    "print": set(),
    "hash": set(),
    "multiprocessing.Pool": set(),
    "os.system": set(),
    "yaml.load": set(),
}
READS_ENVIRONMENT = {
    "inventory_engine.settings",
    "catalog.assets",
    "catalog.s3",
    "catalog.signing",
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {
    module_name(path): ast.parse(path.read_text(encoding="utf-8"))
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}
LINES = {
    module_name(path): len(path.read_text(encoding="utf-8").splitlines())
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.AST) -> Iterator[Function]:
    return (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))


def length(function: Function) -> int:
    """Lines of a function without its docstring."""
    lines = (function.end_lineno or function.lineno) - function.lineno + 1
    first = function.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
        lines -= (first.end_lineno or first.lineno) - first.lineno + 1
    return lines


def is_checking_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports(module: str, *, everywhere: bool) -> set[str]:
    """Names of our modules that a module imports; when it is loaded, or everywhere in it."""
    tree = SOURCES[module]
    found: set[str] = set()
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or is_checking_types(node)
        if inside and not everywhere:
            continue
        waiting.extend(ast.iter_child_nodes(node))
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = module.split(".")
                is_package = (ROOT / Path(*here) / "__init__.py").exists()
                kept = here[: len(here) - node.level + (1 if is_package else 0)]
                base = ".".join([*kept, *([base] if base else [])])
            parts = {f"{base}.{alias.name}" for alias in node.names}
            found |= parts
            if not parts <= SOURCES.keys():
                found.add(base)
    return {name for name in found if name in SOURCES and name != module}


def test_every_package_keeps_the_import_law():
    broken = [
        f"{module} imports {name}"
        for module in SOURCES
        for name in imports(module, everywhere=True)
        if name.split(".")[0] != module.split(".")[0]
        and name.split(".")[0] not in PACKAGES[module.split(".")[0]]
    ]
    assert not broken


def test_no_module_imports_itself_through_others():
    graph = {module: imports(module, everywhere=False) for module in SOURCES}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"cycle: {' -> '.join([*path, module])}"
        if module in done:
            return
        for name in sorted(graph[module]):
            visit(name, (*path, module))
        done.add(module)

    for module in sorted(graph):
        visit(module, ())


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_a_module_is_short_and_says_what_it_is(module: str):
    tree = SOURCES[module]
    assert LINES[module] <= 600
    assert ast.get_docstring(tree), "no docstring"
    if tree.body[1:]:
        assert "from __future__ import annotations" in ast.unparse(tree) or module.endswith(
            ("catalog", "model_serving", "change_detection", "inventory_engine")
        )


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_public_names_are_listed_in_order(module: str):
    for node in SOURCES[module].body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names = ast.literal_eval(node.value)
            assert len(set(names)) == len(names)
            upper = [n for n in names if n.isupper()]
            classes = [n for n in names if n[0].isupper() and not n.isupper()]
            rest = [n for n in names if not n[0].isupper()]
            assert names == [*sorted(upper), *sorted(classes), *sorted(rest)]


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_functions_are_typed_documented_and_keyword_only(module: str):
    faults = []
    for node in ast.walk(SOURCES[module]):
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            if not ast.get_docstring(node):
                faults.append(f"class {node.name} has no docstring")
            members = [n for n in node.body if isinstance(n, ast.FunctionDef)]
        elif isinstance(node, ast.Module):
            members = [n for n in node.body if isinstance(n, ast.FunctionDef)]
        else:
            continue
        for function in members:
            public = not function.name.startswith("_")
            if public and not ast.get_docstring(function):
                faults.append(f"{function.name} has no docstring")
            positional = [a for a in function.args.args if a.arg not in ("self", "cls")]
            untyped = [
                a.arg for a in [*positional, *function.args.kwonlyargs] if a.annotation is None
            ]
            if untyped:
                faults.append(f"{function.name}: {untyped} have no type")
    assert not faults


def called(node: ast.Call) -> str:
    return ast.unparse(node.func)


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_forbidden_calls_stay_where_they_have_a_reason(module: str):
    faults = []
    for node in ast.walk(SOURCES[module]):
        if isinstance(node, ast.Assert):
            faults.append(f"assert in line {node.lineno}")
        if isinstance(node, ast.Call):
            for name, allowed in FORBIDDEN.items():
                here = any(module == a or module.startswith(f"{a}.") for a in allowed)
                if not here and (called(node) == name or called(node).endswith(f".{name}")):
                    dotted_print = name in {"print", "eval", "exec", "hash"} and "." in called(node)
                    if not dotted_print:
                        faults.append(f"{called(node)} in line {node.lineno}")
            for keyword in node.keywords:
                if keyword.arg in {"verify", "allow_pickle"}:
                    value = ast.unparse(keyword.value)
                    if value == ("False" if keyword.arg == "verify" else "True"):
                        faults.append(f"{keyword.arg}={value} in line {node.lineno}")
        if (
            isinstance(node, ast.Attribute)
            and ast.unparse(node) in {"os.environ", "os.getenv"}
            and module not in READS_ENVIRONMENT
        ):
            faults.append(f"{ast.unparse(node)} in line {node.lineno}")
    assert not faults


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_a_blind_except_raises_or_records(module: str):
    for node in ast.walk(SOURCES[module]):
        if isinstance(node, ast.ExceptHandler):
            caught = "everything" if node.type is None else ast.unparse(node.type)
            if caught in {"everything", "Exception", "BaseException"}:
                body = "\n".join(ast.unparse(part) for part in node.body)
                assert "raise" in body or ".record(" in body, f"line {node.lineno} swallows"


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_nothing_is_left_for_later(module: str):
    text = (ROOT / Path(*module.split("."))).with_suffix(".py")
    path = text if text.exists() else ROOT / Path(*module.split(".")) / "__init__.py"
    for word in ("TO" + "DO", "FIX" + "ME", "X" * 3):
        assert word not in path.read_text(encoding="utf-8")


def test_our_row_of_the_table_stays_the_best(
    record_property: Callable[[str, object], None],
):
    sizes = sorted(length(f) for tree in SOURCES.values() for f in functions(tree))
    p95 = sizes[int(0.95 * (len(sizes) - 1))]
    long = 100 * sum(size > 60 for size in sizes) / len(sizes)
    wide = [
        f
        for module, tree in SOURCES.items()
        for f in functions(tree)
        if not f.name.startswith("_")
        and not module.startswith("model_serving.compiled.")  # numba takes arguments by place
        and len([a for a in f.args.args if a.arg not in ("self", "cls")]) + len(f.args.kwonlyargs)
        >= 4
    ]
    keyword_only = 100 * sum(bool(f.args.kwonlyargs) for f in wide) / max(1, len(wide))
    modules = sorted(LINES.values())
    tests = sum(
        len(p.read_text(encoding="utf-8").splitlines()) for p in (ROOT / "tests").glob("*.py")
    )
    record_property(
        "code",
        f"files {len(modules)} | lines {sum(modules)} | median file "
        f"{statistics.median(modules):.0f} | largest {modules[-1]} | median fn "
        f"{statistics.median(sizes):.0f} | p95 fn {p95} | fn > 60 lines {long:.1f} % | "
        f"kwonly {keyword_only:.0f} % | test/src {tests / sum(modules):.2f}",
    )
    assert statistics.median(modules) <= 250
    assert statistics.median(sizes) <= 12
    assert p95 <= 50
    assert long <= 3
    assert keyword_only >= 80
