#!/usr/bin/env python3
"""Checks a page of `kvaq report` as a browser, a screen reader and a suspicious reader would.

usage: check_page.py PAGE.html [--eval RESULT.json] [--frontier RESULT.json] [--speed RESULT.json]
Well-formed as HTML and as XML; nothing is loaded; landmarks, headings, captions, scopes, labels of pictures; and with a JSON file: every number
of it that the page shows is the file's own, unrounded in <data value>, and its text is that number rounded.
"""
import argparse
import html.parser
import json
import re
import sys
import xml.etree.ElementTree as ElementTree

VOID = {"meta", "br", "hr", "img", "input", "link"}
LOADS = {"src", "srcset", "data", "poster", "background", "action", "formaction", "xlink:href", "ping", "manifest"}
FORBIDDEN = {"script", "link", "img", "iframe", "object", "embed", "video", "audio", "form", "base", "image", "use", "foreignobject"}
errors = []


def check(holds, what):
    if not holds:
        errors.append(what)


class Page(html.parser.HTMLParser):
    """Every tag closed by itself, in order, as html.parser sees it."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open = []
        self.ids = []
        self.wanted_ids = []
        self.headings = []
        self.tags = {}

    def handle_startendtag(self, tag, attrs):
        self.see(tag, attrs)

    def handle_starttag(self, tag, attrs):
        self.see(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def see(self, tag, attrs):
        values = dict(attrs)
        self.tags[tag] = self.tags.get(tag, 0) + 1
        check(tag not in FORBIDDEN, f"forbidden tag <{tag}>")
        check(len(values) == len(attrs), f"an attribute of <{tag}> is there twice: {attrs}")
        for name, value in attrs:
            check(not name.startswith("on"), f"event handler {name} in <{tag}>")
            check(name not in LOADS, f"<{tag} {name}={value!r}> loads something")
            if name == "href":
                check(value.startswith("#"), f"link out of the page: {value!r}")
                self.wanted_ids.append(value[1:])
            if name == "aria-labelledby":
                self.wanted_ids += value.split()
            if name == "id":
                self.ids.append(value)
            if name == "style":
                check("url" not in value.lower(), f"style loads something: {value!r}")
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))

    def handle_endtag(self, tag):
        check(bool(self.open) and self.open[-1] == tag, f"</{tag}> closes <{self.open[-1] if self.open else 'nothing'}>")
        if self.open and self.open[-1] == tag:
            self.open.pop()


def text_of(element):
    return "".join(element.itertext()).strip()


def check_structure(text):
    page = Page()
    page.feed(text)
    page.close()
    check(not page.open, f"left open: {page.open}")
    check(len(set(page.ids)) == len(page.ids), "an id is there twice")
    for wanted in page.wanted_ids:
        check(wanted in page.ids, f"nothing has the id {wanted!r}")
    check(page.headings.count(1) == 1 and page.headings[0] == 1, f"not one h1 first: {page.headings}")
    check(all(b <= a + 1 for a, b in zip(page.headings, page.headings[1:])), f"a level of heading is left out: {page.headings}")
    for landmark in ("header", "nav", "main", "footer"):
        check(page.tags.get(landmark) == 1, f"{page.tags.get(landmark, 0)} <{landmark}>")
    style = "".join(re.findall(r"<style>(.*?)</style>", text, re.S))
    check("@import" not in style and "url(" not in style, "the style loads something")
    check("prefers-color-scheme:dark" in style, "no dark mode")
    check("default-src 'none'" in text, "no Content-Security-Policy")
    head, _, rest = text.partition("\n")
    check(head == "<!DOCTYPE html>", "no doctype")
    root = ElementTree.fromstring(rest)
    check(root.get("lang"), "no language")
    for svg in root.iter("svg"):
        check(svg.get("role") == "img" and len(svg.get("aria-label", "")) > 20, "a picture without words")
        check(svg.get("viewBox") is not None and "nan" not in ElementTree.tostring(svg, "unicode").lower().replace("nans", ""), "a picture with a NaN")
    for table in root.iter("table"):
        caption = table.find("caption")
        check(caption is not None and text_of(caption), "a table without a caption")
        columns = table.findall("thead/tr/th")
        check(columns and all(c.get("scope") == "col" for c in columns), "a column head without scope")
        for row in table.findall("tbody/tr"):
            check(len(list(row)) == len(columns), f"a row of another length in '{text_of(caption)}'")
            check(row[0].tag == "th" and row[0].get("scope") == "row", f"a row without a head in '{text_of(caption)}'")
    for section in root.iter("section"):
        check(section.get("aria-labelledby"), "a section without a name")
    return root


def table_of(root, section_id, columns):
    """Rows of the tables of a section, by their head: {head: {column: (value, text)}}."""
    rows = {}
    for section in root.iter("section"):
        if section.get("id") != section_id:
            continue
        for table in section.iter("table"):
            names = [text_of(c) for c in table.findall("thead/tr/th")]
            if not set(columns) <= set(names):
                continue
            for row in table.findall("tbody/tr"):
                cells = {}
                for name, cell in zip(names, row):
                    data = cell.find("data")
                    cells[name] = (None if data is None else float(data.get("value")), text_of(cell))
                rows[text_of(row[0]).lstrip("\u25b6 ")] = cells
    return rows


def check_number(where, cell, wanted):
    value, text = cell
    check(value == wanted, f"{where}: the page has {value}, the file {wanted}")
    shown = re.match(r"-?[\d.]+(?:e-?\d+)?", text)
    check(shown is not None, f"{where}: no number in {text!r}")
    if shown is None or wanted == 0:
        return
    scale = 100 if "%" in text else {"KiB": 2**-10, "MiB": 2**-20, "GiB": 2**-30}.get(text[-3:], 1)
    digits = len(shown[0].partition(".")[2].partition("e")[0])
    step = 10.0**-digits * 10.0 ** int(shown[0].partition("e")[2] or 0)
    check(abs(float(shown[0]) - wanted * scale) <= 0.5001 * step, f"{where}: {text!r} is not {wanted} rounded")


def check_eval(root, path, section_id, columns):
    rows = table_of(root, section_id, columns)
    with open(path, encoding="utf-8") as file:
        result = json.load(file)
    for row in result["rows"]:
        cells = rows.get(row["name"])
        check(cells is not None, f"{section_id}: no row {row['name']!r}")
        if cells is None:
            continue
        check_number(f"{row['name']}, bits", cells["bits per number"], row["effective_bits"])
        if row["kind"] != "reference":
            check_number(f"{row['name']}, KL", cells["mean KL (nats)"], row["mean_kl"]["value"])
            check_number(f"{row['name']}, same top", cells["same top token"], row["same_top"]["value"])
        if "perplexity" in cells:
            check_number(f"{row['name']}, perplexity", cells["perplexity"], row["perplexity"]["value"])
            check_number(f"{row['name']}, bytes", cells["bytes"], row["bytes"])
    check(len(rows) == len(result["rows"]), f"{section_id}: {len(rows)} rows, the file has {len(result['rows'])}")


def check_speed(root, path):
    with open(path, encoding="utf-8") as file:
        speed = json.load(file)
    rows = table_of(root, "speed", ["depth (tokens)"])
    for row in speed["rows"]:
        for column, one in zip(speed["columns"], row["speeds"]):
            check_number(f"depth {row['depth']}, {column}", rows[str(row["depth"])][column], one["median"])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("page")
    parser.add_argument("--eval")
    parser.add_argument("--frontier")
    parser.add_argument("--speed")
    args = parser.parse_args()
    with open(args.page, encoding="utf-8") as file:
        text = file.read()
    try:
        root = check_structure(text)
    except ElementTree.ParseError as error:
        sys.exit(f"no well-formed XML: {error}; {errors}")
    if args.eval:
        check_eval(root, args.eval, "eval", ["bits per number", "perplexity"])
    if args.frontier:
        check_eval(root, args.frontier, "frontier", ["bits per number", "same top token"])
    if args.speed:
        check_speed(root, args.speed)
    if errors:
        sys.exit("\n".join(dict.fromkeys(errors)))
    print(f"{args.page}: in order, {len(list(root.iter('table')))} tables, {len(list(root.iter('svg')))} pictures")


if __name__ == "__main__":
    main()
