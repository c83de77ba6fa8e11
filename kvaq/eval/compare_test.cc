// Whole evaluations of the small model against facts that do not depend on one machine's rounding.
#include "kvaq/eval/compare.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "kvaq/base/error.h"
#include "kvaq/base/file.h"
#include "kvaq/eval/calibrate.h"
#include "kvaq/eval/calibration_text.h"
#include "kvaq/eval/session.h"

namespace kvaq {
namespace {

CompareRequest small_request() {
    CompareRequest request;
    request.model = KVAQ_MODEL;
    request.text = KVAQ_DATA_DIR "/wiki-excerpt.txt";
    request.n_ctx = 256;
    request.n_chunks = 2;
    request.n_batch = 64;
    return request;
}

const auto kSilent = [](size_t, size_t, const std::string&) {};

TEST(Compare, NumbersOffByLessThanTheirTypeResolvesAreAtTheFloor) {
    CompareRequest request = small_request();
    request.n_chunks = 1;
    request.perturbed = true;
    request.plans = {"f16", "k4v4-rot"};
    const CompareResult result = compare(request, kSilent);
    ASSERT_EQ(result.rows.size(), 5U);  // reference, batches of 3, perturbed, f16, k4v4-rot
    EXPECT_EQ(result.rows[2].kind, "control");
    const auto kl = [&](size_t row) { return result.rows[row].summary.mean_kl.value; };
    EXPECT_NE(kl(2), kl(3)) << "nothing was disturbed";
    EXPECT_LT(kl(2), 3 * kl(1) + 1e-4);
    EXPECT_LT(kl(2), kl(4));
}

TEST(Compare, GoesOnWhereItWasInterrupted) {
    CompareRequest request = small_request();
    request.control = false;
    request.plans = {"k4v4-rot"};
    request.types = {"q4_0"};
    const CompareResult whole = compare(request, kSilent);
    request.partial = testing::TempDir() + "compare.partial";
    struct Stop {};
    EXPECT_THROW(compare(request,
                         [](size_t done, size_t, const std::string&) {
                             if (done == 5) throw Stop{};
                         }),
                 Stop);
    ASSERT_TRUE(std::filesystem::exists(request.partial));
    size_t n_calls = 0;
    const CompareResult resumed = compare(request, [&](size_t done, size_t total, const std::string&) {
        EXPECT_EQ(done, ++n_calls);
        EXPECT_EQ(total, 6U);
    });
    remove_partial(request.partial);
    EXPECT_FALSE(std::filesystem::exists(request.partial));
    for (size_t r = 0; r < 3; ++r) {
        ASSERT_EQ(resumed.rows[r].chunks.size(), 2U);
        for (size_t c = 0; c < 2; ++c) {
            for (size_t i = 0; i < resumed.rows[r].chunks[c].size(); ++i) {
                EXPECT_EQ(resumed.rows[r].chunks[c][i].kl, whole.rows[r].chunks[c][i].kl) << r << c << i;
                EXPECT_EQ(resumed.rows[r].chunks[c][i].nll, whole.rows[r].chunks[c][i].nll) << r << c << i;
            }
        }
    }
    // The rows that were kept are not measured again: a number that was changed in the file comes back.
    EXPECT_THROW(compare(request,
                         [](size_t done, size_t, const std::string&) {
                             if (done == 2) throw Stop{};
                         }),
                 Stop);
    const std::vector<std::byte> bytes = read_file(request.partial);
    std::string text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    const size_t line = text.find(R"("item":1)");
    const size_t value = text.find("[[", text.find("observations", line));
    ASSERT_NE(line, std::string::npos);
    const size_t nll = text.find('[', value + 2) + 1;
    text.replace(nll, text.find(',', nll) - nll, "77.5");
    atomic_write_text(request.partial, text);
    EXPECT_EQ(compare(request, kSilent).rows[1].chunks[0][0].nll, 77.5);
    // What other rows have left is of no use.
    atomic_write_text(request.partial, text);
    request.plans = {"k2v2"};
    EXPECT_NE(compare(request, kSilent).rows[1].chunks[0][0].nll, 77.5);
    remove_partial(request.partial);
}

TEST(Compare, RowsAgainstOneReferenceAreOrderedByTheirPrecision) {
    CompareRequest request = small_request();
    request.plans = {"f16", "k2v2"};
    request.types = {"q8_0", "q4_0"};
    size_t calls = 0;
    const CompareResult result = compare(request, [&](size_t done, size_t total, const std::string&) {
        EXPECT_EQ(done, ++calls);
        EXPECT_EQ(total, 12U);
    });
    ASSERT_EQ(result.rows.size(), 6U);  // reference, control, q8_0, q4_0, f16, k2v2
    EXPECT_EQ(calls, 12U);
    const CompareRow& reference = result.rows[0];
    EXPECT_EQ(reference.kind, "reference");
    EXPECT_EQ(reference.summary.n_tokens, 2U * 127U);
    EXPECT_EQ(reference.summary.mean_kl.value, 0.0);
    EXPECT_EQ(reference.summary.same_top.value, 1.0);
    EXPECT_DOUBLE_EQ(reference.effective_bits, 16.0);
    const auto kl = [&](size_t row) { return result.rows[row].summary.mean_kl.value; };
    EXPECT_GT(kl(1), 0.0);               // other batches round otherwise
    EXPECT_LT(kl(1), 0.02);              // the floor is small
    EXPECT_LT(kl(4), 3 * kl(1) + 1e-4);  // our f16 cache is at the floor
    EXPECT_GT(kl(3), 2 * kl(2));         // q4_0 is clearly worse than q8_0
    EXPECT_GT(kl(5), 2 * kl(3));         // two bits without rotation are worse still
    EXPECT_LT(result.rows[5].bytes, result.rows[4].bytes);
    EXPECT_LT(result.rows[5].summary.same_top.value, result.rows[1].summary.same_top.value);
    for (const CompareRow& row : result.rows) {
        EXPECT_GT(row.seconds, 0.0) << row.name;
        double nll = 0;
        for (const auto& chunk : row.chunks) {
            for (const TokenScore& score : chunk) nll += score.nll;
        }
        EXPECT_NEAR(row.summary.perplexity.value, std::exp(nll / 254.0), 1e-9) << row.name;
    }
}

TEST(Compare, SlicingAChunkToSaveMemoryChangesNoScore) {
    CompareRequest request = small_request();
    request.plans = {"k4v2-rot"};
    request.control = false;
    const CompareResult whole = compare(request, kSilent);
    request.max_reference_bytes = 1;  // one batch of 64 at a time
    const CompareResult sliced = compare(request, kSilent);
    ASSERT_EQ(sliced.rows.size(), whole.rows.size());
    for (size_t r = 0; r < whole.rows.size(); ++r) {
        for (size_t c = 0; c < whole.rows[r].chunks.size(); ++c) {
            for (size_t t = 0; t < whole.rows[r].chunks[c].size(); ++t) {
                ASSERT_EQ(sliced.rows[r].chunks[c][t].nll, whole.rows[r].chunks[c][t].nll) << r << ' ' << c << ' ' << t;
                ASSERT_EQ(sliced.rows[r].chunks[c][t].kl, whole.rows[r].chunks[c][t].kl) << r << ' ' << c << ' ' << t;
            }
        }
    }
}

TEST(Compare, JsonHoldsWhatIsNeededToMakeItAgain) {
    CompareRequest request = small_request();
    request.n_chunks = 1;
    request.types = {"q4_0"};
    const CompareResult result = compare(request, kSilent);
    const nlohmann::json json = nlohmann::json::parse(to_json(request, result, "kvaq eval ..."));
    EXPECT_EQ(json["schema_version"], 1);
    EXPECT_EQ(json["command"], "kvaq eval ...");
    EXPECT_EQ(json["model"]["fingerprint"].get<std::string>().size(), 64U);
    EXPECT_EQ(json["text"]["sha256"].get<std::string>().size(), 64U);
    ASSERT_EQ(json["rows"].size(), 3U);
    EXPECT_EQ(json["rows"][2]["name"], "q4_0 (llama.cpp)");
    EXPECT_NEAR(json["rows"][2]["chunks"][0]["mean_kl"].get<double>(), result.rows[2].summary.mean_kl.value, 1e-12);
    EXPECT_GT(json["rows"][2]["tokens_per_second"].get<double>(), 0.0);
    EXPECT_NE(to_markdown(request, result).find("| q4_0 (llama.cpp) | 4.50 |"), std::string::npos);
}

template <typename Function>
std::string error_of(Function function) {
    try {
        function();
    } catch (const Error& error) {
        return error.what();
    }
    return "no error";
}

TEST(Compare, RefusesBadRequestsByName) {
    CompareRequest request = small_request();
    request.n_chunks = 1000;
    const std::string short_text = error_of([&] { (void)compare(request, kSilent); });
    EXPECT_NE(short_text.find("256000 tokens"), std::string::npos) << short_text;  // wanted
    EXPECT_NE(short_text.find("found"), std::string::npos) << short_text;
    request = small_request();
    request.n_batch = 0;
    EXPECT_NE(error_of([&] { (void)compare(request, kSilent); }).find("-b"), std::string::npos);
    request = small_request();
    request.n_ctx = static_cast<size_t>(-64);  // as "-c -64" once read; n_ctx * n_chunks would wrap around
    request.n_chunks = size_t{1} << 58;
    EXPECT_NE(error_of([&] { (void)compare(request, kSilent); }).find("-c"), std::string::npos);
    request = small_request();
    request.types = {"q9_9"};
    EXPECT_NE(error_of([&] { (void)compare(request, kSilent); }).find("q9_9"), std::string::npos);
    request = small_request();
    request.text = "/nonexistent/text.txt";
    EXPECT_NE(error_of([&] { (void)compare(request, kSilent); }).find("/nonexistent/text.txt"), std::string::npos);
}

TEST(Calibrate, RefusesRequestsThatWouldDivideByNothing) {
    CalibrateRequest request;
    request.model = KVAQ_MODEL;
    request.text = KVAQ_DATA_DIR "/wiki-excerpt.txt";
    request.n_ctx = 0;
    EXPECT_NE(error_of([&] { (void)calibrate(request, kSilent); }).find("-c 0"), std::string::npos);
    request.n_ctx = 512;
    request.probe_chunks = 0;
    EXPECT_NE(error_of([&] { (void)calibrate(request, kSilent); }).find("--probe-chunks 0"), std::string::npos);
}

TEST(Calibrate, LeavesTheEndOfTheBuiltInTextToTheCheck) {
    const ModelPtr model = load_model(KVAQ_MODEL);
    const size_t n_tokens = tokenize_text(model.get(), calibration_text(), "the built-in text").size();
    CalibrateRequest request;
    request.model = KVAQ_MODEL;
    request.probes = false;
    request.n_ctx = n_tokens - kHeldOutTokens + 1;
    EXPECT_NE(error_of([&] {
                  (void)calibrate(request, kSilent);
              }).find(std::to_string(n_tokens - kHeldOutTokens) + " tokens"),
              std::string::npos);
}

TEST(Calibrate, CountsEveryTokenFindsWhatOneBitCostsAndGoesOnWhereItStopped) {
    CalibrateRequest request;
    request.model = KVAQ_MODEL;
    request.n_ctx = 256;
    request.n_chunks = 2;
    request.probe_ctx = 64;
    request.probe_chunks = 1;
    request.joint_ctx = 128;
    request.long_ctx = 256;
    struct Stop {};
    std::optional<ModelStats> saved;
    const auto save = [&](const ModelStats& so_far) { saved = so_far; };
    EXPECT_THROW((void)calibrate(
                     request,
                     [&](size_t done, size_t, const std::string&) {
                         if (done == 30) throw Stop();
                     },
                     std::nullopt, save),
                 Stop);
    ASSERT_TRUE(saved.has_value());
    const double before = saved->layers[3].probe.key_kl;
    EXPECT_GT(before, LayerProbe::kNotMeasured);
    EXPECT_FALSE(saved->layers[29].probe.complete());

    size_t first = 0;
    size_t last = 0;
    size_t total = 0;
    const ModelStats stats = calibrate(
        request,
        [&](size_t done, size_t of, const std::string&) {
            if (last == 0) {
                first = done;
            } else {
                EXPECT_EQ(done, last + 1);
            }
            last = done;
            total = of;
        },
        saved);
    EXPECT_EQ(first, request.n_chunks) << "no chunk was read again for statistics";
    EXPECT_EQ(stats.layers[3].probe.key_kl, before);
    EXPECT_EQ(last, total);
    EXPECT_EQ(stats.n_tokens, 512U);
    EXPECT_EQ(stats.layers.size(), 30U);
    double worst = 0;
    for (const LayerStats& layer : stats.layers) {
        ASSERT_EQ(layer.heads.size(), 3U);
        worst = std::max({worst, layer.probe.key_kl, layer.probe.value_kl});
        EXPECT_TRUE(layer.probe.complete() && std::isfinite(layer.probe.key_kl) && std::isfinite(layer.probe.value_kl))
            << layer.shape.layer;  // measured, and not NaN
        for (const HeadStats& head : layer.heads) {
            EXPECT_GT(head.key_norm(), 0.0);
            EXPECT_TRUE(std::isfinite(head.value_norm()));
        }
    }
    EXPECT_GT(worst, 0.05 * stats.base_kl) << "one layer at 1 bit is felt";
    ASSERT_EQ(stats.lengths.size(), 1U);
    EXPECT_EQ(stats.lengths[0].n_ctx, 256);
    EXPECT_EQ(stats.lengths[0].short_ctx, 128);
    EXPECT_GT(stats.lengths[0].kl, 0.0);
    EXPECT_EQ(stats.joint.size(), 13U)
        << "four numbers of bits for keys, values and both; one window fits in 128 tokens";
    EXPECT_LT(stats.joint_floor, stats.joint[11].kl) << "all layers at 4 bits";
    EXPECT_LT(stats.joint[11].kl, stats.joint[2].kl) << "all layers at 1 bit";
}

TEST(Session, ChunksAreThoseOfLlamaPerplexity) {
    const ModelPtr model = load_model(KVAQ_MODEL);
    const std::vector<llama_token> tokens = tokenize_file(model.get(), KVAQ_DATA_DIR "/wiki-excerpt.txt");
    const llama_vocab* vocab = llama_model_get_vocab(model.get());
    const std::vector<llama_token> chunk = chunk_of(model.get(), tokens, 1, 100);
    ASSERT_EQ(chunk.size(), 100U);
    if (llama_vocab_get_add_bos(vocab)) {
        EXPECT_EQ(tokens[0], llama_vocab_bos(vocab));
        EXPECT_EQ(chunk[0], llama_vocab_bos(vocab));
    } else {
        EXPECT_EQ(chunk[0], tokens[100]);
    }
    EXPECT_EQ(chunk[1], tokens[101]);
    EXPECT_EQ(chunk[99], tokens[199]);
}

TEST(Session, DecodingInPartsGivesTheLogitsOfAWholeChunk) {
    const ModelPtr model = load_model(KVAQ_MODEL);
    const std::vector<llama_token> tokens = tokenize_file(model.get(), KVAQ_DATA_DIR "/wiki-excerpt.txt");
    const std::vector<llama_token> chunk = chunk_of(model.get(), tokens, 0, 96);
    const ContextPtr ctx = make_context(model.get(), {.n_ctx = 96, .n_batch = 32}, {});
    std::vector<std::vector<float>> whole;
    EXPECT_GT(
        decode_chunk(ctx.get(), chunk, 32, 90,
                     [&](size_t, std::span<const float> logits) { whole.emplace_back(logits.begin(), logits.end()); }),
        0.0);
    ASSERT_EQ(whole.size(), 6U);
    std::vector<size_t> positions;
    llama_memory_clear(llama_get_memory(ctx.get()), true);
    for (const auto& [begin, end] : {std::pair<size_t, size_t>{0, 64}, {64, 96}}) {
        (void)decode_part(ctx.get(), chunk, begin, end, 32, 90, [&](size_t position, std::span<const float> logits) {
            EXPECT_TRUE(std::equal(logits.begin(), logits.end(), whole[positions.size()].begin())) << position;
            positions.push_back(position);
        });
    }
    EXPECT_EQ(positions, (std::vector<size_t>{90, 91, 92, 93, 94, 95}));

    std::vector<int> visits(chunk.size());
    std::vector<std::vector<float>> shared(chunk.size());
    (void)decode_chunk(
        ctx.get(), chunk, 32, 90,
        [&](size_t position, std::span<const float> logits) {
            ++visits[position];
            shared[position].assign(logits.begin(), logits.end());
        },
        3);
    for (size_t i = 0; i < chunk.size(); ++i) {
        EXPECT_EQ(visits[i], i >= 90 ? 1 : 0);
        EXPECT_EQ(shared[i], i >= 90 ? whole[i - 90] : std::vector<float>());
    }
}

}  // namespace
}  // namespace kvaq
