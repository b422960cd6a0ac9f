#!/bin/bash
# The whole example on this host: keys, a server and four workers over TLS, one of them Byzantine. It exits with 0 if
# all processes do, the loss falls, and the models of server and workers are equal after every round.
#   ROUNDS=10 PORT=9000 ./test_local.sh
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
python="${PYTHON:-python3}"
work="$(mktemp -d)"
pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true; rm -rf "$work"' EXIT

echo "making keys"
for name in server worker-0 worker-1 worker-2 worker-3; do
  byzflow keys new "$name" --dir "$work/$name" > /dev/null &
done
wait
for id in 0 1 2 3; do  # as `byzflow keys trust` does, after looking at the certificate
  cp "$work/worker-$id/own.crt" "$work/server/trusted/worker-$id.crt"
  cp "$work/server/own.crt" "$work/worker-$id/trusted/server.crt"
done

sed "s/port: 9000/port: ${PORT:-9000}/" "$here/nodes_example.yaml" > "$work/nodes.yaml"
echo "metrics: $work/rounds.jsonl" >> "$work/nodes.yaml"
node() { "$python" "$here/ps_node.py" --config "$work/nodes.yaml" --data-root "$work" --keys "$work/$1" "${@:2}"; }

for id in 0 1 2; do
  node "worker-$id" --role worker --worker-id "$id" > "$work/worker-$id.log" 2>&1 &
  pids+=($!)
done
node worker-3 --role worker --worker-id 3 --worker-type byzantine > "$work/worker-3.log" 2>&1 &
pids+=($!)

failed=0
node server --role server --rounds "${ROUNDS:-50}" || failed=$?
for id in 0 1 2 3; do
  wait "${pids[$id]}" || failed=$?
  tail -n 1 "$work/worker-$id.log"
done
pids=()
[ "$failed" -eq 0 ] || { tail -n 5 "$work"/worker-*.log; exit "$failed"; }

"$python" - "$work/rounds.jsonl" <<'CHECK'
import json, sys
rounds = [json.loads(line) for line in open(sys.argv[1])]
first, last = rounds[0]["metrics"]["loss"], rounds[-1]["metrics"]["loss"]
different = [each["round"] + 1 for each in rounds if not each["equal"]]
print(f"{len(rounds)} rounds, loss {first:.3f} -> {last:.3f}, models different in rounds {different or 'none'}")
sys.exit("the loss did not fall" if last >= first else bool(different))
CHECK
