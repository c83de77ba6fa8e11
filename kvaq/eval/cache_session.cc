#include "kvaq/eval/cache_session.h"

#include <algorithm>
#include <memory>
#include <set>
#include <utility>

#include "kvaq/base/error.h"
#include "kvaq/cache/kv_cache.h"
#include "kvaq/plan/budget.h"

namespace kvaq {

size_t CacheRow::bytes(const ModelShape& shape, size_t n_tokens) const {
    return plan ? cache_bytes(*plan, n_tokens).total : llama_cache_bytes(shape, ggml_type_name(type), n_tokens);
}

double CacheRow::effective_bits(const ModelShape& shape, size_t n_tokens) const {
    const size_t elements = cache_bytes(make_uniform_plan(parse_preset("f16"), shape), n_tokens).elements;
    return 8.0 * static_cast<double>(bytes(shape, n_tokens)) / static_cast<double>(elements);
}

std::vector<CacheRow> cache_rows(const ModelShape& shape, const std::vector<std::string>& types,
                                 const std::vector<std::string>& plans) {
    for (const std::vector<std::string>* given : {&types, &plans}) {
        std::set<std::string> names;
        for (const std::string& name : *given) {
            if (names.insert(name).second) continue;
            throw Error(ErrorCode::kInvalidArgument, "a cache is given twice", "every plan and type once",
                        "'" + name + "' twice");
        }
    }
    std::vector<CacheRow> rows;
    rows.push_back({.name = "f16 (llama.cpp)", .kind = "reference", .factory = {}, .plan = {}});
    for (const std::string& type : types) {
        if (type == "f16") continue;  // the reference
        rows.push_back({.name = type + " (llama.cpp)",
                        .kind = "llama.cpp",
                        .factory = {},
                        .type = llama_cache_type(type),
                        .plan = {}});
    }
    for (const std::string& name : plans) {
        const HandlerFactory factory = plan_factory(name);
        const std::unique_ptr<AttentionHandler> handler =
            factory(shape, {.n_seq_max = 1, .n_ctx = 1, .max_batch_tokens = 1});
        const auto* cache = dynamic_cast<const KvCache*>(handler.get());
        KVAQ_CHECK(cache != nullptr);
        rows.push_back({.name = cache->plan().name, .kind = "plan", .factory = factory, .plan = cache->plan()});
        const auto same = [&](const CacheRow& row) { return row.name == rows.back().name; };
        if (std::count_if(rows.begin(), rows.end(), same) > 1) rows.back().name += " (" + name + ")";
    }
    return rows;
}

std::vector<llama_token> tokenize_part(const llama_model* model, const std::string& text, bool special) {
    std::vector<llama_token> tokens(text.size() + 8);
    const int32_t n =
        llama_tokenize(llama_model_get_vocab(model), text.data(), static_cast<int32_t>(text.size()), tokens.data(),
                       static_cast<int32_t>(tokens.size()), /*add_special=*/false, special);
    if (n < 0) throw Error(ErrorCode::kCorrupt, "cannot tokenize a text", "text", text.substr(0, 60));
    tokens.resize(static_cast<size_t>(n));
    return tokens;
}

std::vector<llama_token> start_of_text(const llama_model* model) {
    const llama_vocab* vocab = llama_model_get_vocab(model);
    if (!llama_vocab_get_add_bos(vocab)) return {};
    return {llama_vocab_bos(vocab)};
}

std::string text_of(const llama_model* model, std::span<const llama_token> tokens) {
    const llama_vocab* vocab = llama_model_get_vocab(model);
    std::string text;
    std::vector<char> piece(64);
    for (const llama_token token : tokens) {
        int32_t n = llama_token_to_piece(vocab, token, piece.data(), static_cast<int32_t>(piece.size()), 0, false);
        if (n < 0) {
            piece.resize(static_cast<size_t>(-n));
            n = llama_token_to_piece(vocab, token, piece.data(), static_cast<int32_t>(piece.size()), 0, false);
        }
        text.append(piece.data(), static_cast<size_t>(std::max(0, n)));
    }
    return text;
}

CacheSession::CacheSession(llama_model* model, const CacheRow& row, size_t n_ctx, size_t n_seq, size_t n_batch,
                           int32_t n_threads)
    : model_(model),
      ctx_(make_context(model,
                        {.n_ctx = static_cast<uint32_t>(n_ctx),
                         .n_batch = static_cast<uint32_t>(n_batch),
                         .n_seq_max = static_cast<uint32_t>(n_seq),
                         .n_threads = n_threads,
                         // llama.cpp frees no cell of a sliding window that two sequences share: forks find no room.
                         .swa_full = n_seq > 1 && !row.factory,
                         .cache_type = row.type},
                        row.factory)),
      n_batch_(n_batch),
      n_vocab_(static_cast<size_t>(llama_vocab_n_tokens(llama_model_get_vocab(model)))),
      past_(n_seq, 0) {}

void CacheSession::decode(std::span<const Piece> pieces, const Visit& visit) {
    struct Place {
        size_t piece;
        size_t index;
    };
    llama_batch batch = llama_batch_init(static_cast<int32_t>(n_batch_), 0, 1);
    const std::unique_ptr<llama_batch, void (*)(llama_batch*)> guard(&batch,
                                                                     [](llama_batch* b) { llama_batch_free(*b); });
    std::vector<Place> places;
    const auto flush = [&] {
        if (places.empty()) return;
        batch.n_tokens = static_cast<int32_t>(places.size());
        const int32_t code = llama_decode(ctx_.get(), batch);
        if (code != 0) {
            throw Error(ErrorCode::kInvalidArgument, "llama.cpp failed to decode", "0", "code " + std::to_string(code));
        }
        for (size_t i = 0; i < places.size(); ++i) {
            if (batch.logits[i] == 0) continue;
            visit(places[i].piece, places[i].index,
                  {llama_get_logits_ith(ctx_.get(), static_cast<int32_t>(i)), n_vocab_});
        }
        places.clear();
    };
    for (size_t p = 0; p < pieces.size(); ++p) {
        size_t& past = past_.at(static_cast<size_t>(pieces[p].seq));
        if (pieces[p].seq == 0) prefix_held_ = false;
        for (size_t t = 0; t < pieces[p].tokens.size(); ++t) {
            const size_t i = places.size();
            batch.token[i] = pieces[p].tokens[t];
            batch.pos[i] = static_cast<llama_pos>(past++);
            batch.n_seq_id[i] = 1;
            batch.seq_id[i][0] = pieces[p].seq;
            batch.logits[i] = t >= pieces[p].first_scored ? 1 : 0;
            places.push_back({p, t});
            if (places.size() == n_batch_) flush();
        }
    }
    flush();
}

void CacheSession::decode(int32_t seq, std::span<const llama_token> tokens, size_t first_scored,
                          const std::function<void(size_t, std::span<const float>)>& visit) {
    const Piece piece{.seq = seq, .tokens = tokens, .first_scored = first_scored};
    decode({&piece, 1}, [&](size_t, size_t index, std::span<const float> logits) { visit(index, logits); });
}

void CacheSession::hold_prefix(std::span<const llama_token> tokens) {
    if (prefix_held_ && std::equal(tokens.begin(), tokens.end(), prefix_.begin(), prefix_.end())) {
        for (size_t seq = 1; seq < past_.size(); ++seq) drop(static_cast<int32_t>(seq));
        return;
    }
    clear();
    decode(0, tokens, kNoScores, {});
    prefix_.assign(tokens.begin(), tokens.end());
    prefix_held_ = true;
}

void CacheSession::fork(int32_t from, int32_t to) {
    drop(to);
    if (n_past(from) == 0) return;
    llama_memory_seq_cp(llama_get_memory(ctx_.get()), from, to, -1, -1);
    past_[static_cast<size_t>(to)] = n_past(from);
}

void CacheSession::drop(int32_t seq) {
    if (n_past(seq) == 0) return;
    (void)llama_memory_seq_rm(llama_get_memory(ctx_.get()), seq, -1, -1);
    past_[static_cast<size_t>(seq)] = 0;
    if (seq == 0) prefix_held_ = false;
}

void CacheSession::clear() {
    llama_memory_clear(llama_get_memory(ctx_.get()), true);
    std::fill(past_.begin(), past_.end(), 0);
    prefix_held_ = false;
}

Generated CacheSession::generate(int32_t seq, std::span<const llama_token> prompt, size_t max_tokens,
                                 const std::function<bool(std::span<const llama_token>)>& stop) {
    KVAQ_CHECK(!prompt.empty());
    const llama_vocab* vocab = llama_model_get_vocab(model_);
    Generated out;
    llama_token next = 0;
    const auto choose = [&](size_t, std::span<const float> logits) {
        next = static_cast<llama_token>(std::max_element(logits.begin(), logits.end()) - logits.begin());
    };
    decode(seq, prompt, prompt.size() - 1, choose);
    while (out.tokens.size() < max_tokens) {
        if (llama_vocab_is_eog(vocab, next)) {
            out.ended = true;
            break;
        }
        out.tokens.push_back(next);
        if (stop && stop(out.tokens)) {
            out.ended = true;
            break;
        }
        if (out.tokens.size() < max_tokens) decode(seq, {&out.tokens.back(), 1}, 0, choose);
    }
    return out;
}

}  // namespace kvaq
