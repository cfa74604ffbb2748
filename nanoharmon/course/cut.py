"""Surgery on source code: find functions by name, replace their bodies by a task, put a student's into our file.

All of it works on lines of text that `ast` has located, so that what is not touched keeps its formatting and comments.
"""
import ast

FUNCTION = ast.FunctionDef, ast.AsyncFunctionDef


def parse(text, name):
    """The syntax tree; ValueError that says where the file cannot be read."""
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as e:
        line = f"line {e.lineno}: " if getattr(e, "lineno", None) else ""
        raise ValueError(f"{name} cannot be read, {line}{getattr(e, 'msg', e)}") from None


def locate(tree, qualified, name="the file"):
    """The node of a function "f" or "Class.f". Raises ValueError where there is none."""
    node = tree
    for part in qualified.split("."):
        same = [n for n in node.body if isinstance(n, (*FUNCTION, ast.ClassDef)) and n.name == part]
        if not same:
            raise ValueError(f"{name} has no {qualified}: it was deleted or renamed")
        node = same[-1]                                          # the last definition is the one that counts
    return node


def first_line(node):
    """Index of a definition's first line, decorators included."""
    return min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))]) - 1


def lines_of(text):
    """Lines as ast counts them: for str.splitlines a form feed or U+2028, pasted into a comment, ends one, too."""
    return text.removesuffix("\n").split("\n")


def source(text, node, indent=None):
    """The lines of a definition, with decorators; indented as they are, or anew."""
    lines = lines_of(text)[first_line(node):node.end_lineno]
    if indent is not None:
        own = lines[0][:len(lines[0]) - len(lines[0].lstrip())]
        lines = [indent + line.removeprefix(own) if line.strip() else "" for line in lines]
    return lines


def stub(text, qualified, task, message):
    """The file with the body of one function replaced by its docstring, the task beneath, and NotImplementedError."""
    node, lines = locate(ast.parse(text), qualified), lines_of(text)
    start = node.body[0].lineno - 1
    if start + 1 == node.lineno:
        raise ValueError(f"{qualified} has its body beside its head: it cannot be cut")
    indent = " " * node.body[0].col_offset
    words = "\n\n".join(part for part in (ast.get_docstring(node), task) if part).splitlines()
    quotes = 'r"""' if any("\\" in line for line in words) else '"""'
    body = [quotes + words[0], *words[1:], '"""', f"raise NotImplementedError({message!r})"]
    lines[start:node.end_lineno] = [(indent + line).rstrip() for line in body]
    return "\n".join(lines) + "\n"


def is_stub(text, qualified, name="the file"):
    """Whether a function still does nothing but raise the exercise's NotImplementedError."""
    body = locate(parse(text, name), qualified, name).body
    last = body[-1]
    return len(body) <= 2 and isinstance(last, ast.Raise) and "NotImplementedError('exercise " in ast.unparse(last)


def transplant(ours, theirs, functions, name="the file"):
    """Our file with the student's versions of `functions`, and with the imports, helpers and constants that they added.

    Whatever our file has, too, stays ours: other functions that the student edited do not count. Top-level statements
    that are neither definitions, imports nor assignments are left out. Raises ValueError that says what is wrong.
    """
    our_tree, their_tree = ast.parse(ours), parse(theirs, name)
    lines = lines_of(ours)
    edits = []                                                   # (from, to, new lines) of our file
    for qualified in functions:
        node = locate(our_tree, qualified)
        edits.append((first_line(node), node.end_lineno,
                      source(theirs, locate(their_tree, qualified, name), " " * node.col_offset)))
    for owner in dict.fromkeys(["", *(f.rpartition(".")[0] for f in functions)]):
        our_scope, their_scope = ((locate(tree, owner) if owner else tree) for tree in (our_tree, their_tree))
        inside = [f.removeprefix(owner + ".").split(".")[0] for f in functions if f.startswith(owner)]
        first = min((n for n in our_scope.body if getattr(n, "name", None) in inside), key=first_line)
        new = added(theirs, our_scope.body, their_scope.body, " " * first.col_offset)
        edits.append((first_line(first), first_line(first), new))      # above all that may need them
    for start, end, new in sorted(edits, key=lambda edit: edit[:2], reverse=True):
        lines[start:end] = new
    mixed = "\n".join(lines) + "\n"
    parse(mixed, name)
    return mixed


def added(text, ours, theirs, indent):
    """Lines: the statements of a student's scope that define names which ours does not have."""
    known, lines = {name for node in ours for name in defined(node)}, []
    for node in theirs:
        if isinstance(node, (ast.Import, ast.ImportFrom)):       # `from torch import nn, einsum`: only what is new
            node.names = [alias for alias in node.names if not known & set(defined(node, [alias]))]
            lines += [indent + ast.unparse(node)] if node.names and defined(node) else []
        elif (names := defined(node)) and not known & set(names):
            lines += source(text, node, indent)
    return lines


def defined(node, aliases=()):
    """The names that a definition, import or assignment gives a meaning; none for other statements."""
    if isinstance(node, (*FUNCTION, ast.ClassDef)):
        return [node.name]
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return [] if getattr(node, "module", "") == "__future__" else \
            [(alias.asname or alias.name).partition(".")[0] for alias in aliases or node.names]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)]
