#include "kvaq/eval/task_parts.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "kvaq/base/error.h"
#include "kvaq/base/file.h"
#include "kvaq/base/sha256.h"

namespace kvaq {

std::vector<size_t> context_lengths(const TaskRequest& request, std::vector<size_t> preset, size_t least,
                                    const llama_model* model, const std::string& task) {
    const std::vector<size_t>& lengths = request.lengths.empty() ? preset : request.lengths;
    const auto most = static_cast<size_t>(std::max(0, llama_model_n_ctx_train(model)));
    for (const size_t length : lengths) {
        if (length >= least && length <= most) continue;
        throw Error(ErrorCode::kInvalidArgument, fmt::format("a context of {} tokens does not suit {}", length, task),
                    fmt::format("{} to {} tokens (the model's context)", least, most), fmt::format("{}", length),
                    "Use other --lengths");
    }
    return lengths;
}

size_t mean_of(std::span<const size_t> values) {
    return std::accumulate(values.begin(), values.end(), size_t{0}) / std::max<size_t>(1, values.size());
}

void TokenText::append(const std::string& text) {
    const std::vector<llama_token> part = tokenize_part(model_, text);
    tokens_.insert(tokens_.end(), part.begin(), part.end());
}

std::vector<llama_token> haystack(const llama_model* model, MadeUpText& made_up, const std::string& intro,
                                  size_t n_tokens, std::span<const Needle> needles) {
    TokenText text(model);
    text.append(intro);
    size_t next = 0;
    while (text.size() < n_tokens || next < needles.size()) {
        if (next < needles.size() &&
            static_cast<double>(text.size()) >= needles[next].depth * static_cast<double>(n_tokens)) {
            text.append(needles[next++].line + "\n");
        } else {
            text.append(made_up.sentence() + "\n");
        }
    }
    return text.tokens();
}

bool Forced::exact(std::span<const llama_token> answer) const {
    return std::equal(top.begin(), top.end(), answer.begin(), answer.end());
}

Forced force(CacheSession& session, int32_t seq, std::span<const llama_token> question,
             std::span<const llama_token> answer, const Forced* reference) {
    KVAQ_CHECK(!question.empty() && !answer.empty());
    std::vector<llama_token> tokens(question.begin(), question.end());
    tokens.insert(tokens.end(), answer.begin(), answer.end() - 1);
    Forced out;
    std::vector<float> own;
    session.decode(seq, tokens, question.size() - 1, [&](size_t index, std::span<const float> logits) {
        const size_t i = index - (question.size() - 1);
        own.resize(logits.size());
        out.top.push_back(static_cast<llama_token>(log_softmax(logits, own)));
        out.nll.push_back(-static_cast<double>(own[static_cast<size_t>(answer[i])]));
        if (reference == nullptr) {
            out.kl.push_back(0);
            out.log_p.insert(out.log_p.end(), own.begin(), own.end());
        } else {
            out.kl.push_back(kl_divergence({&reference->log_p[i * logits.size()], logits.size()}, own));
        }
    });
    return out;
}

double mean_value(std::span<const double> values) {
    return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

double equal_share(std::span<const llama_token> a, std::span<const llama_token> b) {
    KVAQ_CHECK(a.size() == b.size() && !a.empty());
    size_t equal = 0;
    for (size_t i = 0; i < a.size(); ++i) equal += a[i] == b[i] ? 1 : 0;
    return static_cast<double>(equal) / static_cast<double>(a.size());
}

size_t agreed_tokens(std::span<const llama_token> a, std::span<const llama_token> b) {
    return static_cast<size_t>(std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin());
}

std::vector<std::string> text_lines(const std::string& path, const std::string& wanted) {
    const std::vector<std::byte> bytes = read_file(path);
    const std::string text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    constexpr std::pair<const char*, const char*> kPacked[] = {{"BZh", "a bzip2 file (bunzip2 -k unpacks it)"},
                                                               {"\x1f\x8b", "a gzip file (gunzip -k unpacks it)"},
                                                               {"\xfd\x37zXZ", "an xz file (xz -dk unpacks it)"},
                                                               {"PK\x03\x04", "a zip file"},
                                                               {"GGUF", "a GGUF file"}};
    for (const auto& [start, what] : kPacked) {
        if (text.rfind(start, 0) == 0) throw Error(ErrorCode::kCorrupt, "'" + path + "' cannot be read", wanted, what);
    }
    if (text.empty() || text.find('\0') != std::string::npos) {
        throw Error(ErrorCode::kCorrupt, "'" + path + "' cannot be read", wanted,
                    text.empty() ? "an empty file" : "a file that is no text");
    }
    std::vector<std::string> lines;
    for (size_t at = 0; at < text.size();) {
        const size_t end = std::min(text.find('\n', at), text.size());
        lines.push_back(text.substr(at, end - at));
        if (!lines.back().empty() && lines.back().back() == '\r') lines.back().pop_back();
        at = end + 1;
    }
    return lines;
}

std::string file_sha256(const std::string& path) { return sha256_hex(read_file(path)); }

}  // namespace kvaq
