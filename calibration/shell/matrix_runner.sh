#!/usr/bin/env bash
# Build a project under every combination of compiler, standard and sanitizer.
#
# Axes live in a small text file, one per line, first word naming the variable:
#
#     CC        gcc-12 clang-16 tcc
#     STD       c99 c11 c23
#     SAN       none address,undefined
#     -         CC=tcc SAN=address,undefined
#     -         CC=gcc-12 STD=c23
#
# Lines starting with a dash are exclusions: a combination matching all of the
# words is left out. The command after "--" then runs once per remaining cell,
# each in a private copy of the tree, with the variables exported. Up to JOBS of
# them go in parallel. Needs bash 5.1 for `wait -p`.

set -u

axes_file=matrix.txt jobs=$(nproc 2>/dev/null || echo 2) only='' stop_early=false
declare -a command=() axis_names=() exclusions=() cells=()
declare -A axis_values=() running=() outcome=() seconds=()

fatal() { echo "matrix: $1" >&2; exit 2; }

parse_args() {
	while (($#)); do
		case $1 in
			-f) axes_file=${2:?-f wants a file}; shift 2 ;;
			-j) jobs=${2:?-j wants a number}; shift 2 ;;
			-o) only=${2:?-o wants VAR=VALUE}; shift 2 ;;
			-x) stop_early=true; shift ;;
			--) shift; command=("$@"); break ;;
			*)  fatal "what is '$1'? (options: -f FILE -j N -o VAR=VALUE -x -- COMMAND...)" ;;
		esac
	done
	((${#command[@]})) || command=(make -s check)
	[[ $jobs =~ ^[1-9][0-9]*$ ]] || fatal "-j needs a positive integer"
}

load_axes() {
	local name rest
	while read -r name rest || [[ -n $name ]]; do
		rest=${rest%%#*}
		case $name in
			''|'#'*) continue ;;
			-) exclusions+=("$rest") ;;
			*[!A-Za-z0-9_]*|[0-9]*) fatal "cannot use '$name' as a variable name" ;;
			*)
				[[ -v axis_values[$name] ]] && fatal "axis $name is given twice"
				axis_names+=("$name")
				axis_values[$name]=$rest ;;
		esac
	done <"$axes_file" || fatal "cannot read $axes_file"
	((${#axis_names[@]})) || fatal "$axes_file defines no axes"
}

# True if every word of $2 occurs among the words of $1.
covers() {
	local word
	for word in $2; do
		[[ " $1 " == *" $word "* ]] || return 1
	done
}

# Cartesian product by recursion over the axes; depth never exceeds a handful.
expand() {
	local depth=$1 prefix=$2 value rule
	if ((depth == ${#axis_names[@]})); then
		prefix=${prefix# }
		for rule in "${exclusions[@]}"; do
			covers "$prefix" "$rule" && return
		done
		[[ -z $only ]] || covers "$prefix" "$only" || return
		cells+=("$prefix")
		return
	fi
	for value in ${axis_values[${axis_names[depth]}]}; do
		expand $((depth + 1)) "$prefix ${axis_names[depth]}=$value"
	done
}

slug() { local s=${1// /__}; printf %s "${s//[^A-Za-z0-9_=.-]/+}"; }

launch() {
	local cell=$1 room
	room=$scratch/$(slug "$cell")
	(
		mkdir -p "$room" && cd "$room" || exit 125
		# Tracked files only, when possible: stale objects from the developer's
		# own build have produced many a mysterious pass.
		if git -C "$origin" rev-parse --git-dir &>/dev/null; then
			(cd "$origin" && git ls-files -z | tar -c --null -T - -f -) | tar -x
		else
			cp -R "$origin"/. .
		fi
		for pair in $cell; do export "${pair?}"; done
		# Skipping is not failing. 77 is the automake convention.
		[[ -z ${CC-} ]] || type -P "$CC" >/dev/null || exit 77
		exec "${command[@]}"
	) >"$scratch/$(slug "$cell").log" 2>&1 </dev/null &
	running[$!]=$cell
	seconds[$cell]=$SECONDS
}

reap() {
	local pid rc cell
	wait -n -p pid "${!running[@]}"
	rc=$?
	[[ -n ${pid-} ]] || return
	cell=${running[$pid]}
	unset "running[$pid]"
	seconds[$cell]=$((SECONDS - seconds[$cell]))
	case $rc in
		0)  outcome[$cell]=ok ;;
		77) outcome[$cell]=skipped ;;
		*)  outcome[$cell]="FAILED ($rc)" ;;
	esac
	printf '[%d/%d] %-12s %s, %ds\n' "${#outcome[@]}" "${#cells[@]}" \
		"${outcome[$cell]}" "$cell" "${seconds[$cell]}"
	[[ ${outcome[$cell]} != FAILED* ]]
}

abandon() {
	((${#running[@]})) && kill "${!running[@]}" 2>/dev/null
	wait
}

parse_args "$@"
load_axes
expand 0 ''
((${#cells[@]})) || fatal "everything is excluded"

origin=$PWD
scratch=$(mktemp -d "${TMPDIR:-/tmp}/matrix.XXXXXX") || exit 2
trap 'abandon; exit 130' INT TERM

echo "${#cells[@]} cells, $jobs at a time, logs in $scratch"
failures=0
for cell in "${cells[@]}"; do
	while ((${#running[@]} >= jobs)); do
		reap || ((++failures))
	done
	if $stop_early && ((failures)); then break; fi
	launch "$cell"
done
if $stop_early && ((failures)); then abandon; running=(); fi
while ((${#running[@]})); do reap || ((++failures)); done

# A red cell is seldom lonely. If every failure shares one setting and no success
# has it, saying so spares the reader a squint at the whole list.
if ((failures > 1)); then
	for name in "${axis_names[@]}"; do
		for value in ${axis_values[$name]}; do
			blamed=true
			for cell in "${!outcome[@]}"; do
				covers "$cell" "$name=$value"; has=$?
				case ${outcome[$cell]} in
					FAILED*) ((has == 0)) || blamed=false ;;
					ok)      ((has != 0)) || blamed=false ;;
				esac
			done
			$blamed && echo "common factor: $name=$value"
		done
	done
fi

if ((failures)); then
	for cell in "${cells[@]}"; do
		[[ ${outcome[$cell]-} == FAILED* ]] || continue
		printf '\n>>> %s\n' "$cell"
		tail -n 15 "$scratch/$(slug "$cell").log"
	done
	exit 1
fi
rm -rf "$scratch"
