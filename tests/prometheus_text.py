"""A strict reader of Prometheus' text exposition format 0.0.4."""
import re

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\["\\n])*"'
SAMPLE = re.compile(rf"({NAME})(?:\{{({LABEL}(?:,{LABEL})*)\}})? (-?(?:\d+(?:\.\d+)?(?:e[+-]?\d+)?|inf)|nan)")


def parse(text):
    """{name: {labels: value}}, labels as a sorted tuple of (name, value). Raises ValueError with the line."""
    if not text.endswith("\n"):
        raise ValueError("the text does not end with a line feed")
    families, described, kind, current = {}, set(), {}, None
    for line in text[:-1].split("\n"):
        if line.startswith("# HELP "):
            found = re.fullmatch(rf"# HELP ({NAME}) (\S.*)", line)
            if not found or found[1] in described:
                raise ValueError(f"HELP: {line}")
            current = found[1]
            described.add(current)
        elif line.startswith("# TYPE "):
            found = re.fullmatch(rf"# TYPE ({NAME}) (counter|gauge)", line)
            if not found or found[1] != current or current in kind:
                raise ValueError(f"TYPE must follow its HELP, once: {line}")
            if (found[2] == "counter") != current.endswith("_total"):
                raise ValueError(f"counters, and only they, end with _total: {line}")
            kind[current] = found[2]
            families[current] = {}
        else:
            found = SAMPLE.fullmatch(line)
            if not found or found[1] != current or current not in kind:
                raise ValueError(f"sample: {line}")
            labels = tuple(sorted(re.findall(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"', found[2] or "")))
            if labels in families[current] or len({name for name, _ in labels}) != len(labels):
                raise ValueError(f"twice: {line}")
            value = float(found[3])
            if kind[current] == "counter" and not value >= 0:
                raise ValueError(f"a counter below 0: {line}")
            families[current][labels] = value
    if not families:
        raise ValueError("nothing in it")
    return families
