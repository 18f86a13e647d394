#!/usr/bin/env bash
# The Helm chart: lint, render by Helm 3 and 4, check against the schemas of Kubernetes 1.25 to 1.37, promtool on alerts and on the
# metrics of a live agent, bad values are refused
# with the value's name, and nothing that is made from something else differs from it. The last line counts.
#   chart.sh --write   makes what is made from something else: CRDs, deploy/espalier.yaml, the README's table.
set -uo pipefail
cd "$(dirname "$0")/.."
source scripts/chart/tools.sh
chart=charts/espalier namespace=espalier-system
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
passed=0 failed=0

main() {
  helm3=$(helm_of 3)/helm && helm4=$(helm_of 4)/helm || exit 1
  if [[ ${1:-} == --write ]]; then
    derive . && echo "written: $chart/crds, $chart/README.md, deploy/espalier.yaml"
    return
  fi
  validate=$(kubernetes_validate) || exit 1
  local values minor crd
  for values in "$chart"/ci/*-values.yaml; do
    check "lint $(name_of "$values"), Helm 3" "$helm3" lint --quiet --strict "$chart" --values "$values"
    check "lint $(name_of "$values"), Helm 4" "$helm4" lint --quiet --strict "$chart" --values "$values"
    both_render "$values"
  done
  for crd in deploy/crds/*.yaml; do
    for minor in 25 37; do
      check "schema of 1.$minor, $crd" "$validate" --kubernetes-version "1.$minor" --strict --quiet "$crd"
    done
  done
  refusals
  drift
  prometheus
  if [[ -e docs/metrics.md ]]; then check "alerts and dashboard use metrics that there are" known_metrics; fi
  printf '%d passed, %d failed\n' "$passed" "$failed"
  ((failed == 0))
}

# check NAME COMMAND…: its output is shown when it fails.
check() {
  local name=$1
  shift
  if "$@" > "$work/output" 2>&1; then
    passed=$((passed + 1))
  else
    failed=$((failed + 1))
    printf 'FAILED %s\n' "$name"
    sed 's/^/  /' "$work/output"
  fi
}

name_of() { basename "$1" -values.yaml; }

# render HELM VALUES VERSION: with hooks, as an installation of that version of Kubernetes would have it.
render() {
  "$1" template espalier "$chart" --namespace "$namespace" --values "$2" --kube-version "$3"
}

both_render() {
  local values=$1 name minor
  name=$(name_of "$values")
  for minor in 20 {25..37}; do
    check "render $name for 1.$minor, Helm 3" to_file "$work/3.yaml" render "$helm3" "$values" "1.$minor.0"
    check "render $name for 1.$minor, Helm 4" to_file "$work/4.yaml" render "$helm4" "$values" "1.$minor.0"
    # They differ in empty lines.
    check "$name for 1.$minor is the same by both" diff <(grep -v '^ *$' "$work/3.yaml") <(grep -v '^ *$' "$work/4.yaml")
    if ((minor >= 25)); then
      check "schemas of 1.$minor, $name" valid "1.$minor" "$work/3.yaml"
    fi
  done
}

to_file() {
  local file=$1
  shift
  "$@" > "$file"
}

# Resources of other groups have no schema there; everything else must have one.
valid() {
  local version=$1 file=$2
  python3 scripts/chart/builtin.py "$file" > "$work/builtin.yaml" && [[ -s $work/builtin.yaml ]] &&
    "$validate" --kubernetes-version "$version" --strict --quiet "$work/builtin.yaml"
}

refusals() {
  local argument words word
  while IFS=$'\t' read -r argument words; do
    [[ $argument == \#* ]] && continue
    for helm in "$helm3" "$helm4"; do
      check "$argument is refused by name" refused "$helm" "$argument" "$words"
    done
  done < scripts/chart/refused.tsv
}

refused() {
  local helm=$1 argument=$2 said word
  if said=$("$helm" template espalier "$chart" --values "$chart/ci/default-values.yaml" --set "$argument" 2>&1); then
    echo "it was taken"
    return 1
  fi
  for word in $3; do
    # The schema's checker separates by dots or slashes.
    if ! grep -qF -e "$word" -e "${word//.//}" <<<"$said"; then
      printf 'the message does not name %s: %s\n' "$word" "$said"
      return 1
    fi
  done
}

known_metrics() {
  local name
  for name in $(grep -ohE 'espalier_[a-z_]+' "$chart"/files/* | sort -u); do
    grep -rqF --include='*.rs' --include=metrics.md -e "$name" docs cmd || { echo "nothing has a metric $name"; return 1; }
  done
}

# Rules as they are rendered, what they do, and what a live agent tells.
prometheus() {
  promtool=$(promtool_of) || { failed=$((failed + 1)); return; }
  mkdir -p "$work/rules"
  render "$helm3" "$chart/ci/all-values.yaml" 1.37.0 > "$work/rendered.yaml"
  check "alerts are rendered" to_file "$work/rules/rules.yaml" python3 scripts/chart/rules.py "$work/rendered.yaml"
  cp scripts/chart/alerts_test.yaml "$work/rules/"
  check "promtool check rules" "$promtool" check rules "$work/rules/rules.yaml"
  check "promtool test rules: alerts fire when they should" "$promtool" test rules "$work/rules/alerts_test.yaml"
  # As the tests of the mesh build it: mostly there is nothing to do.
  check "build of the agent" cargo build --locked --quiet -p espalier-agent -p espalier-dataplane -p espalier-cni -p espalier-cli
  check "metrics of a live agent" to_file "$work/metrics.txt" scripts/chart/live-metrics.sh "${CARGO_TARGET_DIR:-target}/debug/espalier-agent"
  check "promtool check metrics" check_metrics "$work/metrics.txt"
}

check_metrics() {
  grep -c '^# TYPE' "$1" && "$promtool" check metrics < "$1"
}

# derive FOLDER: everything that is made from something else, under FOLDER.
derive() {
  local to=$1
  mkdir -p "$to/deploy" "$to/$chart/crds"
  cp deploy/crds/*.yaml "$to/$chart/crds/"
  python3 scripts/chart/readme.py "$chart/values.yaml" "$chart/README.md" > "$work/README.md" && cp "$work/README.md" "$to/$chart/README.md"
  {
    echo "# Made by scripts/chart.sh --write from the Helm chart, for clusters without Helm. Apply deploy/crds first."
    printf -- '---\napiVersion: v1\nkind: Namespace\nmetadata: {name: %s}\n' "$namespace"
    "$helm3" template espalier "$chart" --namespace "$namespace" --values deploy/values.yaml --kube-version 1.25.0 --no-hooks |
      grep -v '^ *$' | sed '/^# Source:/d; /managed-by: Helm/d; /helm.sh\/chart:/d'
  } > "$work/espalier.yaml" && cp "$work/espalier.yaml" "$to/deploy/espalier.yaml"
}

drift() {
  derive "$work/derived"
  local file
  while read -r file; do
    check "$file is up to date (scripts/chart.sh --write)" diff -u "$file" "$work/derived/$file"
  done < <(cd "$work/derived" && find . -type f | sed 's|^\./||')
  check "no CRD too many in the chart" diff <(ls deploy/crds) <(ls "$chart/crds")
}

main "$@"
