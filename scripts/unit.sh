#!/usr/bin/env bash
# All tests of the workspace. Ends with the runner's own closing lines.
set -euo pipefail
if command -v cargo-nextest >/dev/null; then
  cargo nextest run --locked --workspace --no-fail-fast
else
  cargo test --locked --workspace --all-targets --no-fail-fast
fi
cargo test --locked --workspace --doc --quiet
