#!/usr/bin/env python3
# Guess how a delimited text file was written: separator, quote mark, header.
#
# The standard library has csv.Sniffer, and for exports out of spreadsheets it
# does fine. It falls over on what our suppliers send: semicolon files full of
# decimal commas, pipe files whose free-text column holds stray commas, and a
# tab file from a weighbridge with a two-line preamble. The approach below
# scores candidate dialects by parsing with each of them and asking two things
# of the outcome. Are rows the same width? And do cells look like *something*
# (a number, a date, an identifier) rather than torn-off fragments of prose?

import argparse
import collections
import io
import itertools
import math
import re
import sys

SEPARATORS = [",", ";", "\t", "|", ":", "~"]
QUOTES = ['"', "'", ""]

Guess = collections.namedtuple("Guess", "sep quote skip width header score")

RECOGNISERS = (
    ("blank", re.compile(r"\s*$")),
    ("integer", re.compile(r"[+-]?\d{1,18}$")),
    ("decimal", re.compile(r"[+-]?(\d+[.,]\d+|[.,]\d+)([eE][+-]?\d+)?$")),
    ("grouped", re.compile(r"\d{1,3}([ ,.']\d{3})+([.,]\d+)?$")),
    ("date", re.compile(r"\d{4}-\d\d-\d\d$|\d{1,2}[./]\d{1,2}[./]\d{2,4}$")),
    ("time", re.compile(r"\d{1,2}:\d\d(:\d\d(\.\d+)?)?$")),
    ("percent", re.compile(r"-?\d+([.,]\d+)?\s?%$")),
    ("token", re.compile(r"[\w.-]+$", re.UNICODE)),
)


def kind(cell):
    stripped = cell.strip()
    for label, pattern in RECOGNISERS:
        if pattern.match(stripped):
            return label
    return "text"


def tear(text, sep, quote):
    """Split TEXT into rows under the given dialect.

    Hand-rolled so that malformed quoting is survivable. A quote only opens a
    cell as its first character, doubled quotes stand for one, and whatever is
    unterminated ends with the input.
    """
    rows, row, buf = [], [], []
    inside = False
    chars = iter(text)
    pending = None
    while True:
        ch = pending if pending is not None else next(chars, None)
        pending = None
        if ch is None:
            break
        if inside:
            if ch != quote:
                buf.append(ch)
                continue
            follower = next(chars, None)
            if follower == quote:
                buf.append(quote)
            else:
                inside, pending = False, follower
                if follower is None:
                    break
        elif quote and ch == quote and not buf:
            inside = True
        elif ch == sep:
            row.append("".join(buf))
            buf.clear()
        elif ch == "\n":
            row.append("".join(buf))
            buf.clear()
            rows.append(row)
            row = []
        else:
            buf.append(ch)
    if buf or row:
        rows.append(row + ["".join(buf)])
    return rows


def preamble_length(rows, width):
    # Titles and "generated at" notices sit above the table and are narrower.
    return sum(1 for _ in itertools.takewhile(lambda r: len(r) != width, rows))


def evenness(rows):
    """Share of rows having the modal width, plus that width."""
    tally = collections.Counter(map(len, rows))
    width, hits = max(tally.items(), key=lambda kv: (kv[1], kv[0]))
    return hits / len(rows), width


def tidiness(rows):
    seen = good = 0
    for cell in itertools.chain.from_iterable(rows):
        seen += 1
        label = kind(cell)
        good += {"text": 0.35, "blank": 0.6}.get(label, 1.0)
        if cell[:1] in "\"'" and cell[:1] != cell[-1:]:
            good -= 0.5  # a dangling quote: the cell was cut somewhere it should not be
    return good / seen if seen else 0.0


def looks_like_header(rows):
    """True when the top row's types disagree with the columns under it."""
    if len(rows) < 3:
        return False
    top, body = rows[0], rows[1:]
    if len(set(top)) < len(top) or any(not c.strip() for c in top):
        return False
    votes = 0
    for title, column in zip(top, zip(*body)):
        common, _ = collections.Counter(map(kind, column)).most_common(1)[0]
        if common in ("token", "text", "blank"):
            # Strings over strings: a title that recurs below is no title.
            votes += -1 if title in column else 0
        else:
            votes += 1 if kind(title) != common else -2
    return votes > 0


def sniff(sample):
    text = sample.replace("\r\n", "\n").replace("\r", "\n")
    if not text.strip():
        raise ValueError("nothing to look at")
    best = None
    for sep, quote in itertools.product(SEPARATORS, QUOTES):
        if sep not in text or (quote and quote not in text):
            continue
        rows = [r for r in tear(text, sep, quote) if r != [""]]
        regular, width = evenness(rows)
        if width < 2:
            continue
        skip = preamble_length(rows, width)
        table = [r for r in rows[skip:] if len(r) == width]
        # Wide tables deserve some credit, with fast-diminishing returns;
        # otherwise ':' inside clock times beats the true separator.
        score = regular * tidiness(table) * (1 + 0.3 * math.log2(width))
        if best is None or score > best.score:
            best = Guess(sep, quote, skip, width, looks_like_header(table), score)
    return best or Guess("\n", "", 0, 1, False, 0.0)


def main(argv=None):
    cli = argparse.ArgumentParser(description="Report the dialect of delimited files.")
    cli.add_argument("files", nargs="*", default=["-"])
    cli.add_argument("-n", "--bytes", type=int, default=65536, metavar="N",
                     help="examine only the first N bytes of each file")
    opts = cli.parse_args(argv)
    status = 0
    for name in opts.files:
        stream = sys.stdin.buffer if name == "-" else open(name, "rb")
        with stream:
            raw = stream.read(opts.bytes)
        decoded = io.TextIOWrapper(io.BytesIO(raw), "utf-8-sig", errors="replace").read()
        try:
            g = sniff(decoded)
        except ValueError as why:
            print(f"{name}: {why}", file=sys.stderr)
            status = 1
            continue
        print(f"{name}: sep={g.sep!r} quote={g.quote or 'none'} columns={g.width}"
              f" preamble={g.skip} header={'yes' if g.header else 'no'}")
    return status


if __name__ == "__main__":
    sys.exit(main())
