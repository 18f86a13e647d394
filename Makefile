# The commands of the README and of CI. `make help` lists them.
CARGO ?= cargo
NODES ?= 3
MESH_NODES ?= 1000
BINARIES := espalier espalier-agent espalier-dataplane espalier-cni espalier-controller
TOOLS := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/espalier-tools

.PHONY: help e2e e2e-kind chart-test image build bench bench-ike bench-kernel bench-dataplane bench-cni demo test interop kernel-test kernel-matrix kernel-kubernetes fmt clippy unit pure deny sizes mesh-1000
help: ## this list
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## /{printf "%-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## release binaries, static, linked into target/bin
	@scripts/packages.sh build
	@folder=$$(realpath $$(scripts/static.sh release)) && mkdir -p target/bin && ln -sf $(addprefix $$folder/,$(BINARIES)) target/bin/

bench: bench-ike bench-kernel bench-dataplane bench-cni ## all benchmarks

bench-ike: ## IKE handshakes: CPU and memory per SA, beside charon (target/bench/ike.json)
	@scripts/packages.sh bench
	$(CARGO) build --locked --release -p espalier-bench-ike
	charon=$$(scripts/charon.sh) && target/release/espalier-bench-ike --charon "$$charon" $(BENCH)

bench-kernel: ## bytes on the wire, SA installs, reconcile, agent at scale (target/bench/kernel.json; BENCH="--only wire")
	@scripts/bench-kernel.sh $(BENCH)

bench-dataplane: ## userspace data plane beside plain veth, VXLAN, wireguard-go, boringtun, gotatun (target/bench/dataplane.json; BENCH="--only plain-veth,espalier-vxlan-udp")
	@scripts/bench-dataplane.sh $(BENCH)

bench-cni: ## ADD and DEL beside Debian's ptp and bridge with host-local (target/bench/cni.json; BENCH="--masquerade")
	@scripts/bench-cni.sh $(BENCH)

demo: build ## several encrypted nodes on this machine, with proof (NODES=3)
	@scripts/packages.sh demo
	target/bin/espalier demo --nodes $(NODES)

test: ## everything that tests run, the demo included
	@scripts/test.sh

interop: ## the IKE engine against strongSwan and Libreswan, in guest kernels (ONLY="--case dpd --peer sid-strongswan")
	@scripts/interop.sh $(ONLY)

kernel-test: ## the real binaries over a real kernel's IPsec, in a guest of Linux 6.1 (ONLY="--case basic")
	@scripts/kernel.sh test $(ONLY)

kernel-kubernetes: ## agents that watch a real API server, over the kernel of Linux 6.1 (builds Kubernetes once)
	@scripts/kernel.sh kubernetes $(ONLY)

kernel-matrix: ## the core of it on Linux 6.1, 6.12 and 7.2, and on two processors (ONLY="--kernel uml-sid")
	@scripts/kernel.sh matrix $(ONLY)

chart-test: ## the Helm chart: lint, schemas of Kubernetes 1.25 to 1.37, refused values, drift
	@scripts/packages.sh chart
	@scripts/chart.sh

image: ## a container image without a registry or Docker: target/espalier.tar (IMAGE=name:tag)
	@scripts/packages.sh image
	@scripts/image.sh target/espalier.tar $(or $(IMAGE),espalier.dev/espalier:$(shell sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml))

e2e: ## Espalier on a real Kubernetes in namespaces of this machine, without Docker (ONLY="--case toggle")
	@scripts/e2e.sh $(ONLY)

e2e-kind: ## the same cases on kind, which needs Docker (ESPALIER_KIND_IMAGE=NAME: on a node image made here, without a registry)
	@scripts/e2e.sh kind $(ONLY)

fmt: ## format check
	$(CARGO) fmt --all --check

clippy: ## lints, warnings are errors
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

unit: ## unit, namespace and corpus tests
	@scripts/unit.sh

pure: ## the pure crates link no runtime, no sockets
	@scripts/pure.sh

deny: ## licenses, sources, bans, advisories
	@scripts/deny.sh "$(TOOLS)"

sizes: ## no Rust file over 600 lines
	@scripts/sizes.sh

mesh-1000: ## 1,000 simulated nodes start IKE at once, all 499,500 pairs (7 min of CPU, 4 GB; MESH_NODES=300: fewer)
	ESPALIER_MESH=$(MESH_NODES) $(CARGO) test --locked --release -p espalier-ike --test endpoint -- --ignored --nocapture \
	  a_thousand_nodes_that_start_together_are_one_mesh
