/* pocket_forth -- a Forth small enough to read over lunch
 *
 * Indirect threading, one flat memory of cells, names kept in the dictionary
 * itself. A word occupies: link cell, name cells (length-prefixed, flag in
 * bit 8), code cell, then parameters. "xt" below always means the index of a
 * code cell. Try:
 *
 *   : gcd  begin dup while swap over mod repeat drop ;
 *   1071 462 gcd .            ( prints 21 )
 */
#include <stdio.h>
#include <string.h>
#include <stdlib.h>
#include <ctype.h>
#include <stdint.h>
#include <setjmp.h>

typedef intptr_t cell;
typedef void (*prim)(void);

enum { CELLS = 1 << 15, DEPTH = 256, IMMEDIATE = 0x100 };

static cell mem[CELLS], here = 1, latest;   /* index 0 means "no word" */
static cell ds[DEPTH], rs[DEPTH];
static int sp, rp;
static cell ip, w;
static int compiling;
static char line[512], *cursor = line, token[64];
static jmp_buf restart;

static void die(const char *why, const char *what)
{
  printf("  ? %s %s\n", why, what);
  longjmp(restart, 1);
}

static void push(cell v) { if (sp >= DEPTH) die("stack overflow", ""); ds[sp++] = v; }
static cell pop(void) { if (sp <= 0) die("stack underflow", ""); return ds[--sp]; }
static void rpush(cell v) { if (rp >= DEPTH) die("return stack overflow", ""); rs[rp++] = v; }
static cell rpop(void) { if (rp <= 0) die("return stack underflow", ""); return rs[--rp]; }
static void comma(cell v) { if (here >= CELLS) die("dictionary full", ""); mem[here++] = v; }

static int next_token(void)
{
  size_t n = 0;
  while (isspace((unsigned char)*cursor)) cursor++;
  while (*cursor && !isspace((unsigned char)*cursor)) {
    if (n < sizeof token - 1) token[n++] = (char)tolower((unsigned char)*cursor);
    cursor++;
  }
  token[n] = 0;
  return n > 0;
}

static cell name_cells(cell word) { return (mem[word + 1] & 0xff) / (cell)sizeof(cell) + 1; }
static cell to_xt(cell word) { return word + 2 + name_cells(word); }

static cell find(const char *name)
{
  for (cell at = latest; at; at = mem[at])
    if (strcmp((char *)&mem[at + 2], name) == 0) return at;
  return 0;
}

static void header(const char *name, prim code)
{
  cell start = here;
  size_t len = strlen(name);
  comma(latest);
  comma((cell)len);
  if (here + 16 >= CELLS) die("dictionary full", "");
  memset(&mem[here], 0, (len / sizeof(cell) + 1) * sizeof(cell));
  memcpy(&mem[here], name, len);
  here += (cell)(len / sizeof(cell) + 1);
  comma((cell)code);
  latest = start;
}

/* The inner interpreter. docol nests, exit un-nests; ip==0 falls out to C. */
static void execute(cell xt)
{
  cell saved = ip;
  ip = 0;
  w = xt;
  ((prim)mem[w])();
  while (ip) {
    w = mem[ip++];
    ((prim)mem[w])();
  }
  ip = saved;
}

static void docol(void) { rpush(ip); ip = w + 1; }
static void dovar(void) { push(w + 1); }
static void p_exit(void) { ip = rpop(); }
static void p_lit(void) { push(mem[ip++]); }
static void p_branch(void) { ip = mem[ip]; }
static void p_zbranch(void) { ip = pop() ? ip + 1 : mem[ip]; }

#define BINARY(fn, expr) static void fn(void) { cell b = pop(), a = pop(); push(expr); }
BINARY(p_add, a + b)
BINARY(p_sub, a - b)
BINARY(p_mul, a * b)
BINARY(p_less, -(a < b))

/* Floored, as the 1983 standard wanted. */
static void p_divmod(void)
{
  cell b = pop();
  cell a = pop();
  if (!b) die("division by zero", "");
  cell q = a / b, r = a % b;
  if (r && (r < 0) != (b < 0)) { q--; r += b; }
  push(r);
  push(q);
}
static void p_mod(void) { p_divmod(); pop(); }

static void p_dup(void) { cell a = pop(); push(a); push(a); }
static void p_drop(void) { pop(); }
static void p_swap(void) { cell y = pop(), x = pop(); push(y); push(x); }
static void p_over(void) { if (sp < 2) die("stack underflow", ""); push(ds[sp - 2]); }

static cell *addr(cell a)
{
  if (a <= 0 || a >= CELLS) die("address out of range", "");
  return &mem[a];
}
static void p_fetch(void) { push(*addr(pop())); }
static void p_store(void) { cell a = pop(); *addr(a) = pop(); }

static void p_dot(void) { printf("%ld ", (long)pop()); }
static void p_cr(void) { putchar('\n'); }

static void compile(const char *name) { comma(to_xt(find(name))); }

/* Compile-time control flow: unresolved addresses ride on the data stack. */
static void c_if(void) { compile("0branch"); push(here); comma(0); }
static void c_then(void) { mem[pop()] = here; }
static void c_else(void) { cell hole = pop(); compile("branch"); push(here); comma(0); mem[hole] = here; }
static void c_begin(void) { push(here); }
static void c_while(void) { c_if(); p_swap(); }
static void c_repeat(void) { compile("branch"); comma(pop()); c_then(); }

static void need_name(void) { if (!next_token()) die("name expected", ""); }
static void p_colon(void) { need_name(); header(token, docol); compiling = 1; }
static void c_semi(void) { compile("exit"); compiling = 0; }
static void p_variable(void) { need_name(); header(token, dovar); comma(0); }
static void p_paren(void) { while (*cursor && *cursor++ != ')') ; }

static const struct { const char *name; prim code; int now; } boot[] = {
  {"exit", p_exit}, {"lit", p_lit}, {"branch", p_branch}, {"0branch", p_zbranch},
  {"+", p_add}, {"-", p_sub}, {"*", p_mul}, {"mod", p_mod},
  {"/mod", p_divmod}, {"<", p_less},
  {"dup", p_dup}, {"drop", p_drop}, {"swap", p_swap}, {"over", p_over},
  {"@", p_fetch}, {"!", p_store},
  {".", p_dot}, {"cr", p_cr}, {":", p_colon}, {"variable", p_variable},
  {"if", c_if, 1}, {"then", c_then, 1}, {"else", c_else, 1}, {"begin", c_begin, 1},
  {"while", c_while, 1}, {"repeat", c_repeat, 1}, {";", c_semi, 1}, {"(", p_paren, 1},
};

static void interpret(void)
{
  while (next_token()) {
    cell word = find(token);
    if (word) {
      if (compiling && !(mem[word + 1] & IMMEDIATE)) comma(to_xt(word));
      else execute(to_xt(word));
      continue;
    }
    char *end;
    cell value = (cell)strtol(token, &end, 0);
    if (*end) die("unknown word", token);
    if (compiling) { compile("lit"); comma(value); }
    else push(value);
  }
}

int main(void)
{
  for (size_t i = 0; i < sizeof boot / sizeof *boot; i++) {
    header(boot[i].name, boot[i].code);
    if (boot[i].now) mem[latest + 1] |= IMMEDIATE;
  }
  if (setjmp(restart)) {       /* errors land here with both stacks emptied */
    sp = rp = compiling = 0;
    ip = 0;
  }
  while (fgets(line, sizeof line, stdin)) {
    cursor = line;
    interpret();
    fputs(compiling ? " ..\n" : " ok\n", stdout);
  }
  return 0;
}
