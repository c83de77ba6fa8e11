// Writes the corpora of the fuzz targets: kvaq_fuzz_corpus FOLDER makes FOLDER/{plan_file,stats_file,snapshot,cache_calls}/. Run again when a
// format changes; what fuzzers found is beside them under other names and stays.
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <random>
#include <tuple>

#include "kvaq/base/file.h"
#ifdef KVAQ_FUZZ_FILES  // not in a core without llama.cpp
#include "kvaq/llama/plan_file.h"
#include "kvaq/llama/stats_file.h"
#endif
#include "tests/fuzz/fuzz_cache.h"

namespace {

using namespace kvaq;
using namespace kvaq::fuzz;

void put(const std::string& path, const std::vector<uint8_t>& bytes) {
    atomic_write(path, std::as_bytes(std::span(bytes)));
}

#ifdef KVAQ_FUZZ_FILES
/// Headers that declare far more than the file holds: nothing of that size may be allocated.
void huge(const std::string& folder) {
    const auto number = [](std::vector<uint8_t>& out, uint64_t value, size_t width) {
        for (size_t i = 0; i < width; ++i) out.push_back(static_cast<uint8_t>(value >> (8 * i)));
    };
    const auto text = [&](std::vector<uint8_t>& out, const std::string& value) {
        number(out, value.size(), 8);
        out.insert(out.end(), value.begin(), value.end());
    };
    const auto header = [&](uint64_t n_tensors, uint64_t n_keys) {
        std::vector<uint8_t> out = {'G', 'G', 'U', 'F'};
        number(out, 3, 4);
        number(out, n_tensors, 8);
        number(out, n_keys, 8);
        return out;
    };
    put(folder + "/huge-keys.gguf", header(0, uint64_t{1} << 60));
    put(folder + "/huge-tensors.gguf", header(uint64_t{1} << 50, 0));
    std::vector<uint8_t> out = header(0, 1);
    number(out, uint64_t{1} << 29, 8);
    put(folder + "/huge-key-name.gguf", out);
    for (const auto& [name, type, count] : {std::tuple{"array", 12U, uint64_t{1} << 29},
                                            {"strings", 8U, uint64_t{1} << 28},
                                            {"bytes", 0U, uint64_t{1} << 30}}) {
        out = header(0, 1);
        text(out, "kvaq.plan.layer");
        number(out, 9, 4);  // an array
        number(out, type, 4);
        number(out, count, 8);
        put(folder + "/huge-" + name + ".gguf", out);
    }
    out = header(0, 1);
    text(out, "general.type");
    number(out, 8, 4);  // a string
    number(out, uint64_t{1} << 29, 8);
    put(folder + "/huge-string.gguf", out);
    out = header(1, 0);
    text(out, "fit0");
    number(out, 4, 4);
    for (const uint64_t n : {uint64_t{1} << 31, uint64_t{1} << 20, uint64_t{1}, uint64_t{1}}) number(out, n, 8);
    number(out, 24, 4);  // i8
    number(out, 0, 8);
    put(folder + "/huge-tensor.gguf", out);
}

void plans(const std::string& folder) {
    ModelShape shape = tiny_model(512);
    shape.name = "tiny";
    for (const char* name : {"klt-s4", "k4v2-w20-s4", "turned:klt-s4"}) {
        Plan plan = plan_of(name, shape);
        plan.fingerprint = std::string(64, 'f');
        plan.measured_how = "corpus";
        write_plan(plan, folder + "/" + name + ".gguf");
    }
    huge(folder);
}

void stats(const std::string& folder) {
    constexpr size_t kDim = 8;
    ModelStats stats;
    stats.architecture = "llama";
    stats.model_name = "tiny";
    stats.fingerprint = std::string(64, 'a');
    stats.text_sha256 = std::string(64, 'b');
    stats.settings = "corpus";
    stats.n_tokens = 64;
    stats.n_sample_tiles = 1;
    stats.joint = {{.key_bits = 3, .value_bits = 16, .window = 0, .kl = 0.1}};
    stats.lengths = {{.n_ctx = 4096, .short_ctx = 2048, .kl = 0.2, .short_kl = 0.1}};
    stats.key_period = 256;
    LayerStats layer;
    layer.rope = {.n_dims = 4, .frequencies = {1.0, 0.01}};
    layer.shape = {
        .layer = 2, .n_heads = 2, .n_kv_heads = 1, .head_dim_k = kDim, .head_dim_v = kDim, .sliding_window = 512};
    HeadStats head;
    for (std::vector<double>* m :
         {&head.key_second, &head.value_second, &head.query_second, &head.key_metric, &head.value_metric})
        m->assign(kDim * kDim, 0.5);
    head.key_mean.assign(kDim, 0.25);
    head.value_mean.assign(kDim, -1);
    head.key_tiles.assign(kDim * 64, to_float16(0.5F));
    head.value_tiles = head.key_tiles;
    layer.heads = {head};
    stats.layers = {layer};
    write_stats(stats, folder + "/tiny.gguf");
    huge(folder);
}

#endif

void snapshots(const std::string& folder) {
    for (uint8_t sliding = 0; sliding < kSlidingWindows.size(); ++sliding) {
        for (const uint8_t plan_index : {uint8_t{0}, uint8_t{1}, uint8_t{7}}) {
            const ModelShape model = tiny_model(kSlidingWindows[sliding]);
            const auto cache = make_kv_cache(plan_of(kPlans[plan_index], model),
                                             {.n_seq_max = kSequences, .n_ctx = kContext, .max_batch_tokens = kBatch});
            (void)run(*cache, model, text(0, 0, 100));
            if (sliding == 0) {
                (void)cache->seq_rm(0, 10, 30);
                (void)cache->seq_add(0, 30, -1, -20);
            }
            (void)run(*cache, model, text(0, cache->seq_pos_max(0) + 1, 50));
            const std::vector<std::byte> bytes = cache->save_sequence(0);
            std::vector<uint8_t> out = {sliding, plan_index};
            for (size_t i = 40; i + 32 < bytes.size(); ++i) out.push_back(static_cast<uint8_t>(bytes[i]));
            put(folder + "/" + kPlans[plan_index] + "-" + std::to_string(kSlidingWindows[sliding]), out);
        }
    }
}

void calls(const std::string& folder) {
    std::mt19937 random(8);
    for (int i = 0; i < 24; ++i) {
        std::vector<uint8_t> bytes(200);
        for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
        bytes[0] = static_cast<uint8_t>(i);
        bytes[1] = static_cast<uint8_t>(i / 2);
        bytes[2] = static_cast<uint8_t>(i);
        put(folder + "/random-" + std::to_string(i), bytes);
    }
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 2) {
        std::fputs("usage: kvaq_fuzz_corpus FOLDER\n", stderr);
        return 1;
    }
    using Make = void (*)(const std::string&);
    const std::vector<std::pair<const char*, Make>> all = {
#ifdef KVAQ_FUZZ_FILES
        {"plan_file", plans},
        {"stats_file", stats},
#endif
        {"snapshot", snapshots},
        {"cache_calls", calls}};
    for (const auto& [name, make] : all) {
        const std::string folder = std::string(argv[1]) + "/" + name;
        std::filesystem::create_directories(folder);
        make(folder);
    }
    return 0;
}
