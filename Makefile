# make run    sets up, segments the sample CT (results in out/) and opens the page with it; ONCE=1 ends before the page
# make demo   the same without the page
# make test   sets up and runs the tests, two at a time (JOBS=1: one after the other)
# make setup  only sets up (.venv); quick when nothing changed
#
# Other than the default:  make setup PYTHON=python3.12
#                          make setup TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= python3
TORCH ?= torch==2.13.0
OUT ?= out
PYTEST ?=
# Files of tests that run at a time; a test that needs a browser or a window brings its own processes.
JOBS ?= 2

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: setup run demo test clean

setup: $(STAMP)

run: $(STAMP)
	$(BIN)/hiendseg demo --page $(if $(ONCE),--once) -o "$(OUT)"

demo: $(STAMP)
	$(BIN)/hiendseg demo -o "$(OUT)"

test: $(STAMP)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(PYTEST)

$(STAMP): pyproject.toml setup.py
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10))" || \
		{ echo "HiEndSeg needs Python 3.10 or newer; name one with 'make setup PYTHON=python3.12'."; exit 1; }
	@# Debian's Python has venv but not the pip that goes into one; the machine's own pip can put it there.
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || \
		{ $(PYTHON) -m venv --without-pip $(VENV) && \
		  $(PYTHON) -m pip --python $(BIN)/python install -q --disable-pip-version-check pip; } || \
		{ echo "$(VENV) could not be made; install pip and venv (Debian, Ubuntu: apt-get install python3-pip" \
		       "python3-venv)."; exit 1; }
	@echo "Installing PyTorch (about 200 MB, with CUDA about 3 GB)"
	$(PIP) install -q $(TORCH)
	@echo "Installing HiEndSeg and what it needs (about 250 MB)"
	@# Nothing that comes now may replace the PyTorch that was just chosen.
	@$(BIN)/python -c "from importlib.metadata import version; print('torch==' + version('torch'))" > $(VENV)/torch.txt
	$(PIP) install -q -c $(VENV)/torch.txt -e ".[app,web,train,test]"
	@.ci/system-packages $(BIN)/python
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info
