BIN := .venv/bin
PROCESSES ?= 3

.PHONY: help demo test matrix check bench format frontend docs screenshot lock clean

help: ## list what can be made
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 12

demo: ## run the demo shop with its live page (PORT=8000 to choose the port)
	@scripts/venv.sh demo
	@exec $(BIN)/python -m uno.demo

test: ## check everything and run all tests; installs what they need
	@scripts/venv.sh test,dev
	@scripts/servers.sh
	@$(MAKE) --no-print-directory check
# Servers are frozen and killed, times compared, on whatever machine this is: a failure is tried again, and told.
# Most of their time they wait for servers: three processes take a third of it.
	@$(BIN)/python -m pytest --numprocesses $(PROCESSES) --dist loadfile --reruns 2 --reruns-delay 1

matrix: ## run contract tests with old and new versions of libraries, each in an environment of its own (ONLY=name)
	@scripts/venv.sh test,dev
	@scripts/servers.sh
	@$(BIN)/python scripts/matrix.py

check: ## format, lint, types, architecture
	@scripts/venv.sh test,dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: ## bring the code into its form
	@scripts/venv.sh test,dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: ## measure, each figure beside its peer
	@scripts/venv.sh test,dev
	@exec $(BIN)/python -m benchmarks

frontend: ## rebuild the page's assets (needs node)
	cd frontend && npm ci --no-audit --no-fund && npm run check && npm run build

docs: ## renew the pages that are printed from declarations in the code
	@scripts/venv.sh test,dev
	$(BIN)/python scripts/resource_types.py > docs/resource-types.md
	$(BIN)/python scripts/names.py

screenshot: ## renew the README's picture from the running demo (needs chromium)
	@scripts/venv.sh test,dev
	$(BIN)/python scripts/screenshot.py

lock: ## bring constraints.txt up to date
	@scripts/venv.sh test,dev
	$(BIN)/python scripts/lock.py

clean: ## remove what tools have left; .venv stays
	rm -rf build dist .coverage .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find src tests scripts benchmarks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
