#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "ggml.h"
#include "kvaq/base/error.h"
#include "kvaq/base/float16.h"
#include "kvaq/llama/attach.h"
#include "kvaq/llama/estimate.h"
#include "kvaq/llama/file_json.h"
#include "kvaq/llama/gguf_file.h"
#include "kvaq/llama/kvaq.h"

namespace {

std::string& last_error() {
    thread_local std::string message;
    return message;
}

/// The call's result, or `failed` and its message kept: no exception leaves a C function.
template <typename Result, typename Call>
Result guarded(Result failed, Call call) noexcept {
    try {
        last_error().clear();
        return call();
    } catch (const std::exception& error) {
        last_error() = error.what();
        return failed;
    }
}

std::string text_of(const char* text) { return text != nullptr ? text : ""; }

std::string dump(const nlohmann::ordered_json& json) {
    return json.dump(2, ' ', true, nlohmann::json::error_handler_t::replace);
}

char* copied(const std::string& text) {
    auto* out = static_cast<char*>(std::malloc(text.size() + 1));
    if (out == nullptr) throw std::bad_alloc();
    std::memcpy(out, text.c_str(), text.size() + 1);
    return out;
}

}  // namespace

struct kvaq_file {
    kvaq::GgufReader gguf;
    std::string json;
};

int kvaq_attach(const char* preset_or_file) {
    return guarded(-1, [&] {
        kvaq::attach(kvaq::plan_factory(text_of(preset_or_file)));
        return 0;
    });
}

void kvaq_detach(void) { kvaq::attach({}); }

const char* kvaq_last_error(void) { return last_error().c_str(); }

size_t kvaq_cache_bytes(const struct llama_context* ctx) {
    const kvaq::KvCache* cache = kvaq::cache_of(ctx);
    if (cache == nullptr) return 0;
    const kvaq::CacheUse use = cache->use();
    return use.packed + use.open + use.sinks + use.tables;
}

const char* kvaq_version(void) { return KVAQ_VERSION; }

char* kvaq_estimate(const char* model, const char* plans, size_t n_ctx, size_t memory, int swa_full) {
    return guarded<char*>(nullptr, [&] {
        kvaq::EstimateRequest request{
            .model = text_of(model), .plans = {}, .n_ctx = n_ctx, .memory = memory, .swa_full = swa_full != 0};
        std::stringstream names(text_of(plans));
        for (std::string name; std::getline(names, name, ',');) request.plans.push_back(name);
        return copied(dump(kvaq::estimate_json(request, kvaq::estimate(request))));
    });
}

void kvaq_free(char* text) { std::free(text); }

struct kvaq_file* kvaq_file_open(const char* path) {
    return guarded<kvaq_file*>(nullptr, [&] {
        std::string json = dump(kvaq::file_json(text_of(path)));
        return new kvaq_file{.gguf = kvaq::GgufReader(text_of(path), "file"), .json = std::move(json)};
    });
}

const char* kvaq_file_json(const struct kvaq_file* file) { return file->json.c_str(); }

size_t kvaq_file_array(const struct kvaq_file* file, const char* name, double* out, size_t capacity) {
    return guarded<size_t>(0, [&] {
        const kvaq::GgufReader::Tensor* tensor = file->gguf.find_tensor(text_of(name));
        if (tensor == nullptr) file->gguf.corrupt("tensor " + text_of(name), "one of that name", "none");
        if (capacity == 0) return static_cast<size_t>(tensor->elements);
        std::vector<double> values;
        if (tensor->type == GGML_TYPE_F64) {
            values = file->gguf.read_f64(tensor->name, tensor->elements);
        } else if (tensor->type == GGML_TYPE_F32) {
            const std::vector<float> floats = file->gguf.read_f32(tensor->name, tensor->elements);
            values.assign(floats.begin(), floats.end());
        } else if (tensor->type == GGML_TYPE_F16) {
            for (const uint16_t bits : file->gguf.read_f16_bits(tensor->name, tensor->elements))
                values.push_back(static_cast<double>(kvaq::float16_from_bits(bits)));
        } else {
            file->gguf.corrupt("tensor " + tensor->name, "f64, f32 or f16", "another type");
        }
        std::copy_n(values.begin(), std::min(capacity, values.size()), out);
        return values.size();
    });
}

void kvaq_file_close(struct kvaq_file* file) { delete file; }
