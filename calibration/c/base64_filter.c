// base64_filter: stream codec usable as a library or as a Unix filter.
//
// Both directions are push-style state machines. Callers feed arbitrary slices
// and get whatever output is complete so far; nothing is buffered beyond two
// or three pending characters. Attachments arrive in network-sized
// pieces which pay no attention to four-character groups.
//
// The decoder is strict about things that signal corruption (wrong padding,
// non-zero leftover bits) and relaxed about things that signal transport (line
// breaks, blanks). The URL-safe alphabet is accepted on input automatically.

#include <ctype.h>
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct {
  uint32_t acc;      // bits not yet emitted, right-aligned
  unsigned nbits;
  unsigned column;   // characters already on the current line
  unsigned wrap;     // 0 disables line breaks
  const char *abc;
  bool pad;
} b64enc;

typedef enum {
  B64_OK = 0,
  B64_BAD_CHAR,
  B64_EARLY_PAD,
  B64_AFTER_PAD,
  B64_TRUNCATED,
  B64_DIRTY_TAIL
} b64err;

typedef struct {
  uint32_t acc;
  unsigned have;     // sextets collected in the current quartet
  unsigned pads;
  uint64_t offset;   // input position, so that complaints can name a byte
} b64dec;

static const char STD[] =
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
static const char URL[] =
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

static char *emit(b64enc *e, char *dst, char c) {
  if (e->wrap && e->column == e->wrap) {
    *dst++ = '\n';
    e->column = 0;
  }
  *dst++ = c;
  e->column++;
  return dst;
}

// Worst case, newline after every character (wrap=1 is silly but legal).
static size_t enc_bound(size_t n) { return (n / 3 + 2) * 8 + 2; }

static size_t enc_push(b64enc *e, const unsigned char *src, size_t n, char *out) {
  char *dst = out;
  while (n--) {
    e->acc = e->acc << 8 | *src++;
    e->nbits += 8;
    while (e->nbits >= 6) {
      e->nbits -= 6;
      dst = emit(e, dst, e->abc[e->acc >> e->nbits & 63]);
    }
    e->acc &= (1u << e->nbits) - 1;
  }
  return (size_t)(dst - out);
}

static size_t enc_close(b64enc *e, char *out) {
  char *dst = out;
  if (e->nbits) {
    // nbits is 2 after one stray byte and 4 after two; pads make up the rest
    unsigned missing = e->nbits == 2 ? 2 : 1;
    dst = emit(e, dst, e->abc[e->acc << (6 - e->nbits) & 63]);
    while (e->pad && missing--) dst = emit(e, dst, '=');
    e->nbits = 0;
  }
  if (e->wrap && e->column) *dst++ = '\n';
  return (size_t)(dst - out);
}

// Compilers turn each range test into a subtract and compare.
static int sextet(unsigned char c) {
  if (c - 'A' + 0u < 26) return c - 'A';
  if (c - 'a' + 0u < 26) return c - 'a' + 26;
  if (c - '0' + 0u < 10) return c - '0' + 52;
  switch (c) {
    case '+': case '-': return 62;
    case '/': case '_': return 63;
    default: return -1;
  }
}

static b64err dec_push(b64dec *d, const char *src, size_t n,
                       unsigned char *out, size_t *written) {
  unsigned char *dst = out;
  b64err verdict = B64_OK;

  for (; n; n--, src++, d->offset++) {
    unsigned char c = (unsigned char)*src;
    if (isspace(c)) continue;
    if (c == '=') {
      if (d->have < 2) { verdict = B64_EARLY_PAD; break; }
      if (d->have + ++d->pads > 4) { verdict = B64_AFTER_PAD; break; }
      continue;
    }
    int v = sextet(c);
    if (v < 0) { verdict = B64_BAD_CHAR; break; }
    if (d->pads) { verdict = B64_AFTER_PAD; break; }
    d->acc = d->acc << 6 | (uint32_t)v;
    if (++d->have == 4) {
      *dst++ = (unsigned char)(d->acc >> 16);
      *dst++ = (unsigned char)(d->acc >> 8);
      *dst++ = (unsigned char)d->acc;
      d->acc = d->have = 0;
    }
  }
  *written = (size_t)(dst - out);
  return verdict;
}

// Unpadded input is fine here, half-padded ("QQ=") is not.
static b64err dec_close(b64dec *d, unsigned char *out, size_t *written) {
  *written = 0;
  if (d->have == 0) return B64_OK;
  if (d->have == 1 || (d->pads && d->have + d->pads != 4)) return B64_TRUNCATED;
  unsigned spare = d->have == 2 ? 4 : 2;
  if (d->acc & ((1u << spare) - 1)) return B64_DIRTY_TAIL;
  d->acc >>= spare;
  if (d->have == 3) out[(*written)++] = (unsigned char)(d->acc >> 8);
  out[(*written)++] = (unsigned char)d->acc;
  return B64_OK;
}

static const char *explain(b64err e) {
  static const char *const why[] = {
      "fine", "character outside the alphabet", "padding before any data",
      "data or padding past the end", "input stops in mid-group",
      "leftover bits are set; the text was probably cut"};
  return why[e];
}

static void must_write(const void *p, size_t n) {
  if (n && fwrite(p, 1, n, stdout) != n) {
    fprintf(stderr, "base64_filter: write: %s\n", strerror(errno));
    exit(2);
  }
}

static int usage(void) {
  fputs("usage: base64_filter [-d] [-u] [-w columns] < in > out\n"
        "  -d  decode      -u  URL-safe alphabet without padding\n", stderr);
  return 64;
}

int main(int argc, char **argv) {
  bool decode = false;
  b64enc enc = {.wrap = 76, .abc = STD, .pad = true};
  b64dec dec = {0};

  for (int opt; (opt = getopt(argc, argv, "duw:")) != -1;) {
    switch (opt) {
      case 'd': decode = true; break;
      case 'u': enc.abc = URL; enc.pad = false; break;
      case 'w': enc.wrap = (unsigned)strtoul(optarg, NULL, 10); break;
      default: return usage();
    }
  }

  enum { SLICE = 12288 };
  static unsigned char in[SLICE];
  char *out = malloc(enc_bound(SLICE));
  if (!out) return 2;

  size_t got, made;
  b64err e = B64_OK;
  while (e == B64_OK && (got = fread(in, 1, SLICE, stdin)) > 0) {
    if (decode)
      e = dec_push(&dec, (char *)in, got, (unsigned char *)out, &made);
    else
      made = enc_push(&enc, in, got, out);
    must_write(out, made);
  }
  if (e == B64_OK) {
    if (decode)
      e = dec_close(&dec, (unsigned char *)out, &made);
    else
      made = enc_close(&enc, out);
    must_write(out, made);
  }
  free(out);
  if (e != B64_OK) {
    fprintf(stderr, "base64_filter: byte %llu: %s\n",
            (unsigned long long)dec.offset, explain(e));
    return 1;
  }
  return fflush(stdout) ? 2 : 0;
}
