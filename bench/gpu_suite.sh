#!/usr/bin/env bash
# Tests, benches, peers, compile report and profile on a CUDA machine, everything written under one folder.
#
#   bench/gpu_suite.sh OUT_DIR [tests|bench|peers|compile|profile ...]      default: all of them, in this order
#
# Each part takes less than nine minutes. A part that is done in OUT_DIR for these sources is skipped, and so is a file
# of tests that has passed; `bench`, `peers` and `compile` stop before their time is over and go on where they stopped
# when called again. Ends with a summary, and with exit code 1 if a part failed, 3 if one is unfinished. PYTHON names the
# interpreter; favorcast may be installed or not (its dependencies must be), peers that are missing are recorded as absent.
set -uo pipefail

if [ $# -lt 1 ]; then
  sed -n '2,10s/^# \{0,1\}//p' "$0"
  exit 2
fi
mkdir -p "$1" && out=$(cd "$1" && pwd) || exit 2
shift
parts=("$@")
[ ${#parts[@]} -gt 0 ] || parts=(tests bench peers compile profile)
cd "$(dirname "$0")/.." || exit 2
root=$PWD
python=${PYTHON:-$(command -v python || command -v python3)}
part_seconds=${PART_SECONDS:-530}
bench_seconds=$((part_seconds * 7 / 10)) # no case is started after this; the last one and its compilation still fit
unfinished=3

if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "no CUDA device is there (or $python has no torch): bench/run.py measures a CPU, bench/dry_run.py launches on none"
  exit 2
fi
mkdir -p "$out/path/favorcast"
ln -sfn "$root/kernels" "$out/path/favorcast/kernels"
ln -sfn "$root/forecasting" "$out/path/favorcast/forecasting"
export PYTHONPATH="$out/path${PYTHONPATH:+:$PYTHONPATH}" # this checkout's sources, whatever is installed

sources=$("$python" -c 'import sys; sys.path.insert(0, "bench"); import machine; print(machine.commit(machine.ROOT, "bench", "tests"))') || exit 2
if [ -e "$out/sources" ] && [ "$(cat "$out/sources")" != "$sources" ]; then
  echo "$out is about $(cat "$out/sources"), this checkout is $sources: every part runs again"
  rm -f "$out"/*.done
fi
printf '%s\n' "$sources" > "$out/sources"

run_bench() { "$python" bench/run.py --output "$out/results" --resume --budget-seconds "$bench_seconds" "$@"; }

part_tests() {
  local file chosen failed=0
  for file in $({ ls tests/test_*_triton.py && grep -l 'mark\.gpu' tests/test_*.py; } | sort -u); do
    [ -e "$out/$(basename "$file").done" ] && continue # most of a file's time is compilation, which Triton caches
    chosen="gpu" # of files about something else
    [[ $file = *_triton.py || $file = *_gpu.py ]] && chosen="gpu or not slow"
    if "$python" -m pytest -m "$chosen" -p no:cacheprovider "$file"; then touch "$out/$(basename "$file").done"; else failed=1; fi
  done
  [ $failed -eq 0 ] || return 1
  if command -v compute-sanitizer > /dev/null; then
    compute-sanitizer --tool memcheck --error-exitcode 9 "$python" bench/run.py --quick --device cuda --no-graphs \
      --op 'favor full .*l512-' --provider 'favorcast triton' --output "$out/sanitizer"
  else
    echo "compute-sanitizer: not installed, memory accesses are not checked"
  fi
}

part_bench() {
  local failed=0
  [ -e "$out/host_cost.done" ] || { "$python" bench/host_cost.py --output "$out/results" && touch "$out/host_cost.done"; } || failed=1
  run_bench --group core || return
  return $failed
}

part_peers() { run_bench --group peers; }

part_compile() {
  local architecture
  architecture=$("$python" -c 'import torch; a, b = torch.cuda.get_device_capability(); print(10 * a + b)') || return 1
  case $architecture in
    80 | 90 | 100 | 120) ;;
    *) architecture="80 90 100 120" ;;
  esac
  # shellcheck disable=SC2086 # several numbers
  "$python" bench/compile_report.py --architecture $architecture --processes "$(nproc)" --json "$out/compile_report.json" \
    --resume --budget-seconds "$bench_seconds"
}

part_profile() {
  "$python" bench/kernel_profile.py > "$out/profile_l4096_d64_m256.txt" &&
    "$python" bench/kernel_profile.py --shape 4 8 3920 16 100 > "$out/profile_seed.txt" &&
    "$python" bench/kernel_profile.py --shape 8 16 4096 64 256 --causal > "$out/profile_causal.txt" &&
    tail -n 3 "$out"/profile_*.txt
}

export -f run_bench part_tests part_bench part_peers part_compile part_profile
export out python bench_seconds root

summary=()
worst=0
for part in "${parts[@]}"; do
  if ! declare -F "part_$part" > /dev/null; then
    summary+=("$part: there is no such part")
    worst=2
    continue
  fi
  if [ -e "$out/$part.done" ]; then
    summary+=("$part: done before")
    continue
  fi
  printf '\n== %s\n' "$part"
  begin=$SECONDS
  timeout "$part_seconds" bash -c "part_$part" 2>&1 | tee "$out/$part.log"
  code=${PIPESTATUS[0]}
  took="$((SECONDS - begin)) s, $out/$part.log"
  case $code in
    0)
      touch "$out/$part.done"
      summary+=("$part: passed ($took)")
      ;;
    "$unfinished")
      summary+=("$part: UNFINISHED, run it again ($took)")
      [ $worst -ne 0 ] || worst=$unfinished
      ;;
    124)
      summary+=("$part: CUT OFF after $part_seconds s ($took)")
      worst=1
      ;;
    *)
      summary+=("$part: FAILED with code $code ($took)")
      worst=1
      ;;
  esac
done

if [ -d "$out/results" ]; then "$python" bench/run.py --report --output "$out/results" || true; fi
{
  printf '\n== summary\n'
  printf '%s\n' "${summary[@]}"
  grep -hE '^(FAILED|ERROR) ' "$out"/tests.log 2> /dev/null
} | tee "$out/summary.txt"
if [ -d "$out/results" ]; then
  "$python" bench/run.py --failures --output "$out/results" | tee -a "$out/summary.txt"
  [ "${PIPESTATUS[0]}" -eq 0 ] || worst=1
fi
exit $worst
