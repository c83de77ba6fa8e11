# make run   install, build, fetch the default model, then: calibrate, plan, compare, answer a prompt, leave a report in out/
# make test  build and pass every test that needs no GPU
.PHONY: run test asan tsan fuzz bench packages format clean deps

run: deps
	@cmake --preset release >build-release.log 2>&1 || { cat build-release.log; exit 1; }
	@echo "make: building kvaq (a minute)"
	@cmake --build --preset release >>build-release.log 2>&1 || { tail -30 build-release.log; exit 1; }
	@rm -f build-release.log
	@scripts/run.sh

test:
	@scripts/bootstrap.sh --tests
	@cmake --preset dev >/dev/null
	@cmake --build --preset dev
	@ctest --preset dev -j2

asan tsan: deps
	@cmake --preset $@ >/dev/null
	@cmake --build --preset $@
	@ctest --preset $@ -j2

# libFuzzer under ASan and UBSan, FUZZ_SECONDS on each target (readers of plans, statistics and snapshots; calls of the cache beside the double
# reference); new inputs go to build/fuzz/found/. Then 100,000 random cache operations (2 modes x 7 plans x 2 models), about 20 minutes.
FUZZ_SECONDS ?= 600
# clang 16 or newer: older ones have no _Float16 on x86.
FUZZ_CXX ?= $(lastword $(sort $(wildcard /usr/bin/clang++-1[6-9] /usr/bin/clang++-2[0-9])) $(if $(shell clang++ -dumpversion 2>/dev/null | grep -E '^(1[6-9]|[2-9][0-9])'),clang++))
FUZZ_TARGETS = plan_file stats_file snapshot cache_calls
fuzz: deps
	@[ -n "$(FUZZ_CXX)" ] || { echo "make fuzz: error: no clang++ of version 16 or newer (apt-get install clang-16 libclang-rt-16-dev), or name it: FUZZ_CXX=" >&2; exit 1; }
	@cmake --preset fuzz -DCMAKE_CXX_COMPILER="$(FUZZ_CXX)" -DCMAKE_C_COMPILER="$(subst ++,,$(FUZZ_CXX))" >/dev/null
	@cmake --build --preset fuzz
	@build/fuzz/bin/kvaq_fuzz_corpus build/fuzz/fuzz-corpus
	@for t in $(FUZZ_TARGETS); do mkdir -p build/fuzz/found/$$t && echo "fuzz: $$t, $(FUZZ_SECONDS) s" && \
		build/fuzz/bin/kvaq_$${t}_fuzz -max_total_time=$(FUZZ_SECONDS) -malloc_limit_mb=64 -rss_limit_mb=4096 -timeout=60 \
		-print_final_stats=1 -artifact_prefix=build/fuzz/found/$$t- build/fuzz/found/$$t build/fuzz/fuzz-corpus/$$t tests/fuzz/corpus/$$t || exit 1; done
	@cmake --preset asan >/dev/null
	@cmake --build --preset asan --target kvaq_cache_tests
	@KVAQ_FUZZ_OPERATIONS=2400 KVAQ_FUZZ_SEED=$$(date +%Y%m%d) build/asan/bin/kvaq_cache_tests --gtest_filter='*RandomOperations*'

bench: deps
	@cmake --preset release >/dev/null
	@cmake --build --preset release
	@for b in build/release/bin/*_bench; do $$b; done

# Debian packages and the Python wheel, in build/packages. docs/packages.md.
packages: deps
	@scripts/package_deb.sh
	@scripts/package_wheel.sh

format:
	@git ls-files '*.cc' '*.h' | xargs clang-format -i

deps:
	@scripts/bootstrap.sh

clean:
	rm -rf build out
