#!/usr/bin/env python3
"""Prints the documents of a rendered chart whose kinds are Kubernetes' own: builtin.py FILE"""
import re
import sys

OTHERS = re.compile(r"^apiVersion: *\"?(espalier\.dev|monitoring\.coreos\.com|cert-manager\.io)/", re.MULTILINE)

with open(sys.argv[1], encoding="utf-8") as file:
    documents = re.split(r"^---$", file.read(), flags=re.MULTILINE)
print("\n---\n".join(d for d in documents if "kind:" in d and not OTHERS.search(d)))
