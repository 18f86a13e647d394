#!/usr/bin/env python3
"""Prints the groups of the PrometheusRule in a rendered chart, as promtool takes them: rules.py FILE"""
import re
import sys

with open(sys.argv[1], encoding="utf-8") as file:
    documents = re.split(r"^---$", file.read(), flags=re.MULTILINE)
rules = [d for d in documents if re.search("^kind: PrometheusRule$", d, re.MULTILINE)]
if len(rules) != 1:
    sys.exit(f"expected one PrometheusRule, found {len(rules)}")
spec = rules[0].split("\nspec:\n", 1)[1]
print("\n".join(line[2:] for line in spec.splitlines()))
