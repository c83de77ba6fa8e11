// Runs a fuzz target without libFuzzer: TARGET [--mutations N] [--seconds S] [--seed N] FILE|FOLDER...
// Every file of the corpus, then N mutations of them (bits flipped, bytes changed, cut, repeated, spliced; numbers set to extremes), at most
// S seconds. The input in progress is kept in $TMPDIR/kvaq-fuzz-last-input-<pid>: a crash leaves it there.
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

// No allocation beyond what a small file justifies.
extern "C" const char* __asan_default_options() { return "max_allocation_size_mb=64:detect_leaks=1"; }
extern "C" const char* __ubsan_default_options() { return "print_stacktrace=1"; }

namespace {

namespace fs = std::filesystem;
using Bytes = std::vector<uint8_t>;

void run(const Bytes& bytes) {
    static const std::string last = fs::temp_directory_path() / ("kvaq-fuzz-last-input-" + std::to_string(getpid()));
    {
        std::ofstream file(last, std::ios::binary | std::ios::trunc);
        file.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    }
    (void)LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
    fs::remove(last);
}

Bytes mutated(const std::vector<Bytes>& corpus, std::mt19937& random) {
    const auto below = [&](size_t n) { return n == 0 ? 0 : static_cast<size_t>(random()) % n; };
    Bytes bytes = corpus[below(corpus.size())];
    for (size_t n = 1 + below(4); n > 0; --n) {
        const size_t at = below(bytes.size());
        switch (below(8)) {
            case 0:
            case 1:
                if (!bytes.empty()) bytes[at] ^= static_cast<uint8_t>(1U << below(8));
                break;
            case 2:
                if (!bytes.empty()) bytes[at] = static_cast<uint8_t>(random());
                break;
            case 3:
                bytes.resize(at);
                break;
            case 4: {  // a number of 1 to 8 bytes becomes an extreme one
                constexpr uint64_t kExtremes[] = {0,
                                                  1,
                                                  0x7F,
                                                  0x80,
                                                  0xFF,
                                                  0x7FFF,
                                                  0xFFFF,
                                                  0x7FFFFFFF,
                                                  0x80000000,
                                                  0xFFFFFFFF,
                                                  0x100000000,
                                                  0x7FFFFFFFFFFFFFFF,
                                                  0xFFFFFFFFFFFFFFFF};
                const uint64_t value = kExtremes[below(std::size(kExtremes))];
                const size_t width = size_t{1} << below(4);
                if (at + width <= bytes.size()) std::memcpy(bytes.data() + at, &value, width);
                break;
            }
            case 5: {  // some bytes again
                const size_t count = std::min(1 + below(32), bytes.size() - at);
                const Bytes part(bytes.begin() + static_cast<ptrdiff_t>(at),
                                 bytes.begin() + static_cast<ptrdiff_t>(at + count));
                bytes.insert(bytes.begin() + static_cast<ptrdiff_t>(below(bytes.size() + 1)), part.begin(), part.end());
                break;
            }
            case 6: {  // some bytes less
                const size_t count = std::min(1 + below(32), bytes.size() - at);
                bytes.erase(bytes.begin() + static_cast<ptrdiff_t>(at),
                            bytes.begin() + static_cast<ptrdiff_t>(at + count));
                break;
            }
            default: {  // goes on as another one
                const Bytes& other = corpus[below(corpus.size())];
                const size_t from = below(other.size());
                bytes.resize(at);
                bytes.insert(bytes.end(), other.begin() + static_cast<ptrdiff_t>(from), other.end());
                if (bytes.size() > 200000) bytes.resize(200000);
            }
        }
    }
    return bytes;
}

}  // namespace

int main(int argc, char** argv) {
    uint64_t n_mutations = 0;
    double seconds = 1e9;
    uint32_t seed = 1;
    std::vector<std::string> files;
    for (int i = 1; i < argc; ++i) {
        const std::string arg = argv[i];
        if (i + 1 < argc && arg == "--mutations") {
            n_mutations = std::strtoull(argv[++i], nullptr, 10);
        } else if (i + 1 < argc && arg == "--seconds") {
            seconds = std::strtod(argv[++i], nullptr);
        } else if (i + 1 < argc && arg == "--seed") {
            seed = static_cast<uint32_t>(std::strtoul(argv[++i], nullptr, 10));
        } else if (fs::is_directory(arg)) {
            for (const auto& entry : fs::directory_iterator(arg)) files.push_back(entry.path().string());
        } else {
            files.push_back(arg);
        }
    }
    std::sort(files.begin(), files.end());
    std::vector<Bytes> corpus;
    for (const std::string& path : files) {
        std::ifstream file(path, std::ios::binary);
        if (!file) {
            std::fprintf(stderr, "cannot read %s\n", path.c_str());
            return 1;
        }
        corpus.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
        run(corpus.back());
    }
    if (corpus.empty()) {
        std::fprintf(stderr, "no corpus: wanted files or folders\n");
        return 1;
    }
    const auto start = std::chrono::steady_clock::now();
    std::mt19937 random(seed);
    uint64_t n = 0;
    for (; n < n_mutations; ++n) {
        if (std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() > seconds) break;
        run(mutated(corpus, random));
    }
    std::printf("%zu files and %llu mutations of them (seed %u): nothing found\n", corpus.size(),
                static_cast<unsigned long long>(n), seed);
    return 0;
}
