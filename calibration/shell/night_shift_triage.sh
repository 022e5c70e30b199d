#!/usr/bin/env bash
#
# Morning digest of a web tier's logs. Reads combined-format access logs (plain,
# .gz or .xz, in any order) on the command line and writes a page of findings a
# half-awake person can act upon. All the counting is done in a single awk pass
# because the files run to several gigabytes and re-reading them took longer than
# making the coffee.
#
# Expected line shape, with the request time in seconds appended by our proxy:
#   198.51.100.7 - - [12/Mar/2024:04:11:09 +0000] "GET /cart?id=3 HTTP/1.1" 502 913 "-" "curl/8" 1.204

set -o errexit -o nounset -o pipefail
export LC_ALL=C   # bytes, not characters: awk is four times quicker this way

: "${SLOW:=2.0}" "${TOP:=8}" "${BURST:=5}"

usage() {
  cat <<-END
	usage: ${0##*/} LOG...
	environment: SLOW=$SLOW seconds, TOP=$TOP entries per section,
	             BURST=$BURST times the median minute counts as an error burst
	END
  exit "${1:-0}"
}

[[ ${1-} == -h || ${1-} == --help ]] && usage
(( $# )) || usage 64 >&2

unpack() {
  local f
  for f; do
    case $f in
      *.gz)  gzip -dc -- "$f" ;;
      *.xz)  xz -dc -- "$f" ;;
      -)     cat ;;
      *)     cat -- "$f" ;;
    esac || echo "warning: could not read all of $f" >&2
  done
}

# The awk program is kept in a quoted here-document so that no shell expansion
# touches its dollar signs.
read -r -d '' program <<'AWK' || true
# Replace whatever varies inside a path by a placeholder, so that a thousand
# order pages are reported as one route.
function route(url,    n, bit, i, out) {
  sub(/\?.*/, "", url)
  n = split(url, bit, "/")
  for (i = 2; i <= n; i++) {
    if (bit[i] ~ /^[0-9]+$/)                       bit[i] = ":n"
    else if (length(bit[i]) >= 16 && bit[i] ~ /^[0-9a-fA-F-]+$/) bit[i] = ":hex"
    else if (length(bit[i]) > 48)                  bit[i] = ":long"
    out = out "/" bit[i]
  }
  return out == "" ? "/" : out
}

# Print the TOP largest members of tally[] with a heading. Repeated selection is
# quadratic on paper; with eight entries wanted, nobody will notice.
function podium(heading, tally, unit,    k, best, shown) {
  print "\n" heading
  while (shown++ < top) {
    best = ""
    for (k in tally) if (best == "" || tally[k] > tally[best]) best = k
    if (best == "" || tally[best] <= 0) break
    printf "  %9.4g %s  %s\n", tally[best], unit, best
    delete tally[best]
  }
  if (shown == 1) print "  nothing, happily"
}

function insertion(a, n,    i, j, v) {
  for (i = 2; i <= n; i++) {
    v = a[i]
    for (j = i - 1; j > 0 && a[j] > v; j--) a[j + 1] = a[j]
    a[j + 1] = v
  }
}

BEGIN { FS = "\"" }

{
  # Splitting at the quotation marks leaves: 1 client and date, 2 request,
  # 3 status and size, 4 referrer, 6 agent, 7 duration.
  if (NF < 7 || split($2, req, " ") < 2 || split($3, reply, " ") < 2) { garbled++; next }
  split($1, head, " ")
  minute = substr(head[4], 2, 17)
  status = reply[1] + 0
  took = $7 + 0
  where = req[1] " " route(req[2])

  total++
  per_minute[minute]
  volume[head[1]] += reply[2] / 1048576
  time_in[where] += took
  if (took > slow) laggards[where]++
  if (status >= 500) {
    faults++
    broken[status " " where]++
    fault_minute[minute]++
  } else if (status == 404 && $4 !~ /^-?$/) {
    # A 404 with a referrer is a dead link somebody can repair; one without
    # is usually a scanner looking for old admin panels.
    dead[route(req[2]) "  linked from " $4]++
  } else if (status == 401 || status == 403) {
    knocks[head[1]]++
  }
}

END {
  if (!total) { print "no usable lines"; exit 3 }
  printf "%d requests, %d server errors (%.3f%%), %d unreadable lines\n",
         total, faults, 100 * faults / total, garbled

  podium("Server errors by route", broken, "x")

  # Minutes free of faults count as zeros, otherwise the median of a quiet
  # night is computed over nothing except its worst moments.
  for (m in per_minute) level[++n] = fault_minute[m] + 0
  if (n <= 3000) insertion(level, n)
  typical = (n <= 3000) ? level[int((n + 1) / 2)] : faults / n
  for (m in fault_minute)
    if (fault_minute[m] < burst * (typical > 1 ? typical : 1)) delete fault_minute[m]
  podium("Error bursts (median minute: " typical ")", fault_minute, "in")

  podium("Slow answers, over " slow " s", laggards, "x")
  podium("Where the time went", time_in, "s ")
  podium("Heaviest clients", volume, "MiB")
  podium("Repeatedly refused", knocks, "x")
  podium("Dead links worth fixing", dead, "x")

  # Status for cron: 1 asks for a human.
  exit (faults > total / 200) ? 1 : 0
}
AWK

verdict=0
unpack "$@" | awk -v slow="$SLOW" -v top="$TOP" -v burst="$BURST" "$program" || verdict=$?

case $verdict in
  0) ;;
  1) echo; echo "More than one request in 200 failed: please look today." ;;
  *) echo "triage itself went wrong (status $verdict)" >&2 ;;
esac
exit "$verdict"
