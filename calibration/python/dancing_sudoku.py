"""Sudoku of any box shape as exact cover, solved by Knuth's Algorithm X.

  $ python dancing_sudoku.py 2x3 < puzzle.txt

Input is any text; digits, letters and '.' count as cells and whatever else
appears (bars, dashes, newlines) gets ignored, which lets people paste grids
straight from the newspaper site. A 2x3 puzzle is 6 by 6 with boxes two rows
tall and three columns wide. 3x3 is assumed when no shape is given.

Why index arrays instead of node objects?  Attribute access on a million tiny
objects was about three-quarters of the running time in the first version.
Five flat lists do the same job: L, R, U, D hold neighbours, and TOP maps each
node to its column header. Header nodes come first, node zero is the root.
"""
import sys

GLYPHS = "123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Cover:
  def __init__(self, columns):
    n = columns + 1
    self.L = [(i - 1) % n for i in range(n)]
    self.R = [(i + 1) % n for i in range(n)]
    self.U = list(range(n))
    self.D = list(range(n))
    self.TOP = list(range(n))
    self.size = [0] * n
    self.tag = [None] * n       # which option a node belongs to
    self.steps = 0              # how often a column was chosen

  def option(self, tag, items):
    """Append a row touching the given 1-based columns."""
    first = len(self.TOP)
    for offset, col in enumerate(items):
      node = first + offset
      above = self.U[col]
      self.U.append(above)
      self.D.append(col)
      self.D[above] = self.U[col] = node
      self.L.append(node - 1)
      self.R.append(node + 1)
      self.TOP.append(col)
      self.tag.append(tag)
      self.size[col] += 1
    last = len(self.TOP) - 1
    self.L[first], self.R[last] = last, first

  def hide(self, col):
    L, R, U, D, TOP, size = self.L, self.R, self.U, self.D, self.TOP, self.size
    R[L[col]], L[R[col]] = R[col], L[col]
    i = D[col]
    while i != col:
      j = R[i]
      while j != i:
        D[U[j]], U[D[j]] = D[j], U[j]
        size[TOP[j]] -= 1
        j = R[j]
      i = D[i]

  def reveal(self, col):
    # Precisely hide() backwards; the links left inside removed nodes are
    # what makes undoing possible. That is the whole dance.
    L, R = self.L, self.R
    U, D = self.U, self.D
    i = U[col]
    while i != col:
      j = L[i]
      while j != i:
        self.size[self.TOP[j]] += 1
        D[U[j]] = U[D[j]] = j
        j = L[j]
      i = U[i]
    R[L[col]] = L[R[col]] = col

  def narrowest(self):
    best, c = None, self.R[0]
    while c:
      if best is None or self.size[c] < self.size[best]:
        best = c
        if self.size[c] < 2:
          break
      c = self.R[c]
    return best

  def solutions(self):
    if self.R[0] == 0:
      yield []
      return
    col = self.narrowest()
    if not self.size[col]:
      return
    self.steps += 1
    self.hide(col)
    row = self.D[col]
    while row != col:
      j = self.R[row]
      while j != row:
        self.hide(self.TOP[j])
        j = self.R[j]
      for rest in self.solutions():
        rest.append(self.tag[row])
        yield rest
      j = self.L[row]
      while j != row:
        self.reveal(self.TOP[j])
        j = self.L[j]
      row = self.D[row]
    self.reveal(col)


class Grid:
  def __init__(self, tall=3, wide=3):
    self.tall, self.wide = tall, wide
    self.side = tall * wide
    if self.side > len(GLYPHS):
      raise SystemExit(f"a {tall}x{wide} box needs more symbols than I know")

  def read(self, text):
    cells = []
    for ch in text.upper():
      if ch in ".0_":
        cells.append(None)
      elif ch in GLYPHS[: self.side]:
        cells.append(GLYPHS.index(ch))
    if len(cells) != self.side ** 2:
      raise SystemExit(f"expected {self.side ** 2} cells, found {len(cells)}")
    return cells

  def as_cover(self, cells):
    n = self.side
    quarter = n * n
    problem = Cover(4 * quarter)
    for place, given in enumerate(cells):
      r, c = divmod(place, n)
      box = r // self.tall * self.tall + c // self.wide
      for v in range(n) if given is None else (given,):
        # One of each: filled cell, digit in row, in column, in box.
        problem.option(
          (place, v),
          [1 + place,
           1 + quarter + r * n + v,
           1 + 2 * quarter + c * n + v,
           1 + 3 * quarter + box * n + v],
        )
    return problem

  def draw(self, answer):
    board = dict(answer)
    out = []
    for r in range(self.side):
      if r and r % self.tall == 0:
        out.append("")
      line = (GLYPHS[board[r * self.side + c]] + " " * (c % self.wide == self.wide - 1)
          for c in range(self.side))
      out.append(" ".join(line).rstrip())
    return "\n".join(out)


def main(args):
  shape = args[0] if args else "3x3"
  try:
    tall, wide = map(int, shape.lower().split("x"))
  except ValueError:
    raise SystemExit(f"cannot read {shape!r} as ROWSxCOLUMNS")
  grid = Grid(tall, wide)
  problem = grid.as_cover(grid.read(sys.stdin.read()))
  found = problem.solutions()
  answer = next(found, None)
  if answer is None:
    print("no solution: the clues contradict one another")
    return 1
  print(grid.draw(answer))
  # A proper puzzle has one answer; looking for a second is usually cheap.
  note = "unique" if next(found, None) is None else "NOT unique, another exists"
  print(f"\n{note} ({problem.steps} choices examined)", file=sys.stderr)
  return 0


if __name__ == "__main__":
  raise SystemExit(main(sys.argv[1:]))
