#include "bench/trials.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <exception>
#include <utility>

#include "kvaq/base/file.h"
#include "kvaq/llama/attach.h"

namespace kvaq {

Trials::Trials(const TrialRequest& request, llama_model* model, const std::string& kind, int schema_version,
               const std::string& columns)
    : request_(request),
      prober_(model, probe_chunks(model, tokenize_file(model, request.text), 0, request.n_chunks, request.n_ctx),
              request.n_ctx / 2, request.n_threads, {}),
      json_{{"schema_version", schema_version}, {"kind", kind},
            {"model", request.model},           {"text", request.text},
            {"n_ctx", request.n_ctx},           {"n_chunks", request.n_chunks},
            {"rows", nlohmann::json::array()}} {
    table_ = columns + " bits/element | mean KL (nats) | same top token |\n|";
    for (auto n = std::count(table_.begin(), table_.end(), '|') - 2; n > 0; --n) table_ += "---|";
    table_ += "\n";
}

void Trials::measure(const std::string& cells, nlohmann::ordered_json keys, double bits, HandlerFactory served,
                     size_t n_batch) {
    const ProbeResult result = prober_.measure(std::move(served), n_batch);
    const std::string row = fmt::format("{} {:.3f} | {:.5f} ± {:.5f} | {:.2f} % |\n", cells, bits, result.kl.value,
                                        result.kl.error, 100 * result.same_top);
    std::fputs(row.c_str(), stderr);
    table_ += row;
    keys["effective_bits"] = bits;
    keys["mean_kl"] = {{"value", result.kl.value}, {"standard_error", result.kl.error}};
    keys["same_top"] = result.same_top;
    json_["rows"].push_back(std::move(keys));
}

void Trials::write(const std::string& what) const {
    std::fputs(table_.c_str(), stdout);
    if (request_.out.empty()) return;
    atomic_write_text(request_.out + ".md", what + "\n\n" + table_);
    atomic_write_text(request_.out + ".json", json_.dump(2) + "\n");
}

int run_trials(CLI::App& app, TrialRequest& request, int argc, char** argv, const std::function<void()>& run) {
    app.add_option("-m,--model", request.model, "GGUF model")->required();
    app.add_option("-f,--file", request.text, "text to score")->required();
    app.add_option("-c,--ctx-size", request.n_ctx, "tokens per chunk")->capture_default_str();
    app.add_option("--chunks", request.n_chunks, "number of chunks")->capture_default_str();
    app.add_option("-t,--threads", request.n_threads, "threads")->capture_default_str();
    app.add_option("--out", request.out, "writes OUT.md and OUT.json");
    CLI11_PARSE(app, argc, argv);
    try {
        quiet_llama(false);
        announce_plans(false);
        run();
    } catch (const std::exception& error) {
        std::fprintf(stderr, "%s: error: %s\n", argv[0], error.what());
        return 1;
    }
    return 0;
}

}  // namespace kvaq
