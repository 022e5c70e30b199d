#!/bin/sh
# grandfather_rotation: snapshot directories with hard links, then thin them out.
#
#   grandfather_rotation.sh [-n] [-k PLAN] SOURCE VAULT
#
# Every run creates VAULT/YYYY-MM-DDTHHMMSS, in which unchanged files are hard
# links into the previous snapshot, so twenty copies of a photo library take the
# room of one plus the edits. PLAN says what survives, e.g. the default
#
#   day=7,week=5,month=12,year=99
#
# meaning the newest snapshot of each of the latest seven days that have one, of
# the latest five ISO weeks, and so forth. A snapshot is kept if any rule wants
# it. Periods without snapshots don't count: after a month's holiday, the seven
# daily ones from before departure are still there when you come home.
#
# Only POSIX sh plus rsync and a GNU or busybox date; it lives on a NAS whose
# bash was last updated during a previous administration.

set -eu

me=${0##*/}
plan='day=7,week=5,month=12,year=99'
rehearse=

complain() { printf '%s: %s\n' "$me" "$*" >&2; }
quit() { complain "$@"; exit 1; }

while getopts nk: flag; do
	case $flag in
	n) rehearse=1 ;;
	k) plan=$OPTARG ;;
	*) quit "usage: $me [-n] [-k PLAN] SOURCE VAULT" ;;
	esac
done
shift $((OPTIND - 1))
[ $# -eq 2 ] || quit "need a source and a vault"

src=${1%/}
[ -d "$src" ] || quit "no such directory: $src"
mkdir -p -- "$2"
vault=$(cd -- "$2" && pwd -P)

# A vault below the source would back itself up for ever.
case $vault/ in
"$(cd -- "$src" && pwd -P)"/*) quit "the vault must not lie inside $src" ;;
esac

# mkdir is the one portable atomic test-and-set. A stale lock is recognised by
# asking whether its owner still runs.
lock=$vault/.rotating
if ! mkdir "$lock" 2>/dev/null; then
	owner=$(cat "$lock/pid" 2>/dev/null || echo)
	if [ -n "$owner" ] && kill -0 "$owner" 2>/dev/null; then
		quit "process $owner is already at it"
	fi
	complain "clearing a lock left by ${owner:-somebody}"
	rm -rf -- "$lock"
	mkdir "$lock"
fi
echo $$ >"$lock/pid"
trap 'rm -rf -- "$lock"' EXIT
trap 'exit 130' INT TERM HUP

# Oldest first; unfinished copies carry a ".part" suffix and never match.
snapshots() {
	for d in "$vault"/[0-9][0-9][0-9][0-9]-[01][0-9]-[0-3][0-9]T[0-9][0-9][0-9][0-9][0-9][0-9]; do
		[ -d "$d" ] && printf '%s\n' "${d##*/}"
	done | sort
}

stamp=$(date +%Y-%m-%dT%H%M%S)
previous=$(snapshots | tail -n 1)
work=$vault/$stamp.part

set -- --archive --delete --numeric-ids --one-file-system
[ -r "$src/.nobackup" ] && set -- "$@" --exclude-from="$src/.nobackup"
[ -n "$previous" ] && set -- "$@" --link-dest="$vault/$previous"

if [ -n "$rehearse" ]; then
	echo "would run: rsync $* $src/ $work/"
else
	# If last night was interrupted, finish that directory instead of starting over.
	for leftover in "$vault"/*.part; do
		[ -d "$leftover" ] || continue
		[ "$leftover" = "$work" ] || mv -- "$leftover" "$work"
		break
	done
	code=0
	rsync "$@" "$src/" "$work/" || code=$?
	case $code in
	0) ;;
	24) complain "some files vanished while being read; carrying on" ;;
	*) quit "rsync gave up with status $code, leaving $work for next time" ;;
	esac
	touch -- "$work"
	mv -- "$work" "$vault/$stamp"
fi

# Translate a name into the label of the period it belongs to.
period_of() {
	ymd=${2%%T*}
	case $1 in
	day) echo "$ymd" ;;
	week) date -d "$ymd" +%G-w%V ;;
	month) echo "${ymd%-*}" ;;
	year) echo "${ymd%%-*}" ;;
	*) return 1 ;;
	esac
}

keepers=$lock/keep
: >"$keepers"
for rule in $(echo "$plan" | tr ',' ' '); do
	unit=${rule%%=*} quota=${rule#*=}
	case $quota in
	'' | *[!0-9]*) quit "bad rule '$rule' in plan" ;;
	esac
	period_of "$unit" "$stamp" >/dev/null || quit "unknown period '$unit'"
	last=
	snapshots | sort -r | while read -r name; do
		label=$(period_of "$unit" "$name")
		[ "$label" = "$last" ] && continue
		[ "$quota" -gt 0 ] || break
		quota=$((quota - 1)) last=$label
		printf '%s\n' "$name" >>"$keepers"
	done
done
# Whatever the arithmetic says, the newest one stays.
snapshots | tail -n 1 >>"$keepers"

snapshots | while read -r name; do
	grep -qxF -- "$name" "$keepers" && continue
	if [ -n "$rehearse" ]; then
		echo "would drop $name"
		continue
	fi
	# Renaming first makes a half-deleted tree invisible to the next run's
	# --link-dest, which would otherwise copy a great deal for nothing.
	mv -- "$vault/$name" "$vault/.doomed-$name"
	chmod -R u+w "$vault/.doomed-$name" 2>/dev/null || :
	rm -rf -- "$vault/.doomed-$name"
	echo "dropped $name"
done
