#pragma once

#include <CLI/CLI.hpp>
#include <cstddef>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>

#include "kvaq/eval/prober.h"
#include "kvaq/eval/session.h"

namespace kvaq {

/// What a bench that measures KL of codecs tried otherwise is asked for.
struct TrialRequest {
    std::string model, text, out;
    size_t n_ctx = 4096, n_chunks = 2;
    int32_t n_threads = 2;
};

/// Second halves of a text's chunks against llama.cpp's f16, a row per trial: on stderr as they come, then as a table and JSON.
class Trials {
  public:
    /// kind: of the JSON. columns: the table's own first ones, "| a | b |".
    Trials(const TrialRequest& request, llama_model* model, const std::string& kind, int schema_version,
           const std::string& columns);
    /// cells: of the own columns, likewise. keys: what the row holds in JSON beside the numbers.
    void measure(const std::string& cells, nlohmann::ordered_json keys, double bits, HandlerFactory served,
                 size_t n_batch = Prober::kBatch);
    /// The table to stdout, and with `what` above it to OUT.md and OUT.json.
    void write(const std::string& what) const;

  private:
    TrialRequest request_;
    Prober prober_;
    nlohmann::ordered_json json_;
    std::string table_;
};

/// A bench's main: its own flags are on `app` already; a message and 1 where run throws.
int run_trials(CLI::App& app, TrialRequest& request, int argc, char** argv, const std::function<void()>& run);

}  // namespace kvaq
