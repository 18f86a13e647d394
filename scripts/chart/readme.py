#!/usr/bin/env python3
"""Prints the chart's README with the table of values made from the comments in values.yaml: readme.py values.yaml README.md

A comment is that of the key below it; a key of a mapping that has comments inside is a heading of its own, not a row."""
import re
import sys

BEGIN, END = "<!-- values: scripts/chart.sh --write -->", "<!-- end of values -->"
KEY = re.compile(r"^( *)([A-Za-z][A-Za-z0-9]*):(?: (.*))?$")


def main():
    values, readme = (open(path, encoding="utf-8").read() for path in sys.argv[1:3])
    head, rest = readme.split(BEGIN)
    tail = rest.split(END)[1]
    table = ["| value | default | meaning |", "|---|---|---|"]
    table += [f"| `{name}` | `{default}` | {escape(meaning)} |" for name, default, meaning in rows(values.splitlines())]
    sys.stdout.write(head + BEGIN + "\n" + "\n".join(table) + "\n" + END + tail)


def rows(lines):
    """(dotted name, default, meaning) of every key with a comment."""
    path, comment = [], []
    for number, line in enumerate(lines):
        if line.strip().startswith("#"):
            comment.append(line.strip().lstrip("#").strip())
            continue
        match = KEY.match(line)
        if match:
            indent, key, default = len(match[1]) // 2, match[2], match[3]
            path[indent:] = [key]
            # The file's own heading is followed by an empty line, which took it away.
            if comment:
                yield ".".join(path), default or block(lines[number + 1:], len(match[1])), " ".join(comment)
        comment = []


def block(lines, indent):
    """A default of several lines, in one."""
    inside = []
    for line in lines:
        if len(line) - len(line.lstrip()) <= indent:
            break
        inside.append(line.strip())
    return "{" + ", ".join(inside) + "}"


def escape(text):
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    main()
