#!/usr/bin/env bash
# What only a CUDA machine can tell, in 28 minutes, the most valuable first.
#
#   bench/gpu_suite.sh OUT_DIR [smoke|headline|tests|bench|peers|profile ...]      default: all of them, in this order
#
#   smoke      3 minutes  every kernel in every dtype against float64, beside patterns that toolchains get wrong; one
#                         minute if all is right
#   headline   5          the shapes of the targets, beside SDPA; what a call costs the host
#   tests      8          the tests that run kernels, in as many processes as there are cores
#   bench      7          all other cases
#   peers      2          the same beside peers, those that are installed
#   profile    2 1/2      kernels by time; compute-sanitizer, where it runs
#
# OUT_DIR receives a few small files: log.txt, summary.txt, what has been done (done.txt, smoke.txt, tests.txt,
# toolchain.txt) and one CSV of results, all of them current after every case. A call that finds them there, on this
# machine or another, goes on where the last one stopped: parts that passed are skipped, and so is what passed in others.
# Compiled kernels stay in Triton's cache. Ends with exit code 1 if something is wrong, 3 if a part is unfinished: call
# again. PYTHON names the interpreter, which needs torch, triton and pytest; favorcast may be installed or not.
# shellcheck disable=SC2329 # parts are called by their names
set -uo pipefail

if [ $# -lt 1 ]; then
  sed -n '2,18s/^# \{0,1\}//p' "$0"
  exit 2
fi
mkdir -p "$1" && out=$(cd "$1" && pwd) || exit 2
shift
parts=("$@")
[ ${#parts[@]} -gt 0 ] || parts=(smoke headline tests bench peers profile)
declare -A limits=([smoke]=180 [headline]=300 [tests]=480 [bench]=420 [peers]=120 [profile]=150) # seconds
cd "$(dirname "$0")/.." || exit 2
python=${PYTHON:-$(command -v python || command -v python3)}

if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "no CUDA device is there (or $python has no torch): bench/run.py measures a CPU, python bench dry_run launches on none"
  exit 2
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/favorcast"
ln -s "$PWD/kernels" "$PWD/forecasting" "$work/favorcast"
export PYTHONPATH="$work:$PWD/bench${PYTHONPATH:+:$PYTHONPATH}" # this checkout's sources, whatever is installed
export PYTHONUNBUFFERED=1                                         # what was said before a part is cut off is in the log

sources=$("$python" -c 'from harness import machine; print(machine.commit(machine.ROOT, "bench", "tests"))') || exit 2
if ! grep -qxs "sources $sources" "$out/done.txt"; then
  [ ! -e "$out/done.txt" ] || echo "$out is about $(head -n 1 "$out/done.txt"), this checkout is $sources: all runs again"
  rm -f "$out/smoke.txt" "$out/tests.txt" "$out/toolchain.txt"
  echo "sources $sources" > "$out/done.txt"
fi

# Cases of the targets, and providers without the torch reference, which takes longest and is nobody's yardstick here.
headline='^favor (full|causal) (b8-h16-l(1024|4096|16384)-d64-m256|b4-h8-l3920-d16-m100) bf|^decomposition b64-l8192-c256-k25 bf'
without_reference='^(?!favorcast reference)'

run_bench() { # until the part's time is nearly over; a case that breaks the CUDA context ends a process, not the part
  local code=3 left
  while [ "$code" -eq 3 ] && left=$((limit - reserve - SECONDS)) && [ "$left" -gt 0 ]; do
    "$python" bench/run.py --output "$out" --resume --budget-seconds "$left" "$@"
    code=$?
  done
  return "$code"
}

retry_wrong() { # the cases in which our kernels are wrong, with the other assemblers; their rows are only printed
  local wrong version path
  wrong=$("$python" bench/run.py --failures --output "$out" |
    sed -n 's/^\(.*\) [a-z+]*: favorcast triton wrong: .*/\1/p' | sort -u | paste -sd '|')
  [ -n "$wrong" ] || return 0
  "$python" -c 'from harness import machine; [print(*x) for x in list(machine.assemblers().items())[1:]]' |
    while read -r version path; do
      echo "wrong cases with ptxas $version:"
      TRITON_PTXAS_PATH=$path TRITON_PTXAS_BLACKWELL_PATH=$path "$python" bench/run.py \
        --op "^($wrong)$" --provider 'favorcast triton' --budget-ms 1 --no-graphs --output "$work/$version" < /dev/null
    done
}

part_smoke() {
  "$python" bench smoke --record "$out/smoke.txt" | tee "$work/smoke"
  local code=${PIPESTATUS[0]}
  if grep -q '^use ' "$work/smoke"; then sed -n 's/^use //p' "$work/smoke" > "$out/toolchain.txt"; fi
  return "$code"
}

part_headline() {
  timeout $((limit / 3)) "$python" bench compile_cases --op "$headline"
  run_bench --op "$headline" --group core --provider "$without_reference"
  local code=$?
  "$python" bench host_cost --output "$out" || code=1
  retry_wrong
  return "$code"
}

part_tests() { "$python" bench gpu_tests "$out/tests.txt" --budget-seconds $((limit - reserve)); }

part_bench() {
  timeout $((limit / 3)) "$python" bench compile_cases
  run_bench --op '^(favor|decomposition) ' --group core --provider "$without_reference"
  local code=$?
  run_bench --op '^(forecaster|layer|rollout step) ' --group core || code=$((code == 1 ? 1 : $?))
  retry_wrong
  return "$code"
}

part_peers() {
  run_bench --op "$headline" --group peers --provider "$without_reference"
  local code=$?
  run_bench --group peers --provider "$without_reference" || code=$((code == 1 ? 1 : $?))
  return "$code"
}

part_profile() {
  "$python" bench kernel_profile && "$python" bench kernel_profile --causal &&
    "$python" bench kernel_profile --shape 4 8 3920 16 100
  local code=$? check
  if ! command -v compute-sanitizer > /dev/null; then
    echo "note: compute-sanitizer is not installed, memory accesses are not checked"
    return "$code"
  fi
  for check in full causal 'decomposition, masked mixture'; do
    compute-sanitizer --report-api-errors no "$python" bench smoke --in-process "$check, d 64, bfloat16" > "$work/sanitizer" 2>&1
    tail -n 20 "$work/sanitizer"
    if grep -qE '^=+ Invalid ' "$work/sanitizer"; then
      code=1
    elif ! grep -q '^=* *ERROR SUMMARY: 0 errors' "$work/sanitizer"; then
      echo "note: compute-sanitizer does not run here, memory accesses are not checked"
      return "$code"
    fi
  done
  return "$code"
}

summarise() {
  {
    printf '== summary\n'
    printf '%s\n' "${summary[@]}"
    [ ! -s "$out/toolchain.txt" ] || echo "since the smoke, kernels were compiled with $(cat "$out/toolchain.txt")"
    grep -hvs '  right  ' "$out/smoke.txt"
    grep -hsE '^(note:|known of|with ptxas) ' "$out/log.txt" | sort -u
    sed -n 's/^\(failed\|absent\)\t/test \1: /p' "$out/tests.txt" 2> /dev/null
    if ls "$out"/*.csv > /dev/null 2>&1; then
      "$python" bench/run.py --failures --output "$out" || touch "$work/wrong"
      "$python" bench targets --results "$out"
    fi
  } > "$out/summary.txt"
}

export -f run_bench retry_wrong part_smoke part_headline part_tests part_bench part_peers part_profile
export out work python headline without_reference

summary=()
worst=0
for part in "${parts[@]}"; do
  if ! declare -F "part_$part" > /dev/null; then
    summary+=("$part: there is no such part")
    worst=2
  elif grep -qx "$part" "$out/done.txt"; then
    summary+=("$part: done before")
  else
    printf '\n== %s\n' "$part" | tee -a "$out/log.txt"
    # shellcheck disable=SC2046 # two variables
    [ ! -s "$out/toolchain.txt" ] || export $(cat "$out/toolchain.txt")
    export limit=${PART_SECONDS:-${limits[$part]}}
    export reserve=$((limit / 8 + 1)) # for the case or the tests at which the part arrives last
    begin=$SECONDS
    timeout -k 10 "$limit" bash -c "part_$part" 2>&1 | tee -a "$out/log.txt"
    code=${PIPESTATUS[0]}
    took="$((SECONDS - begin)) s"
    case $code in
      0) summary+=("$part: passed ($took)") && echo "$part" >> "$out/done.txt" ;;
      3) summary+=("$part: UNFINISHED, call again ($took)") && worst=$((worst == 0 ? 3 : worst)) ;;
      124 | 137) summary+=("$part: CUT OFF ($took)") && worst=1 ;;
      *) summary+=("$part: FAILED with code $code ($took)") && worst=1 ;;
    esac
    summarise
  fi
done
summarise
cat "$out/summary.txt"
[ ! -e "$work/wrong" ] || worst=1
exit $worst
