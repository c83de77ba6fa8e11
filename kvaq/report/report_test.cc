#include "kvaq/report/report.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <sstream>

#include "kvaq/base/sha256.h"
#include "kvaq/plan/budget.h"
#include "kvaq/plan/plan_json.h"
#include "kvaq/report/sections.h"
#include "kvaq/stats/stats_samples.h"
#include "tests/subprocess.h"

namespace kvaq {
namespace {

std::string committed(const std::string& name) {
    std::ostringstream text;
    text << std::ifstream(std::string(KVAQ_DATA_DIR) + "/../results/" + name, std::ios::binary).rdbuf();
    return text.str();
}

const std::string kHostile = "</title><script>alert('1')</script>\" onload=\"x & | ` \xFF\x01";

ModelShape small_shape(const std::string& name) {
    ModelShape shape{.architecture = "llama", .name = name, .fingerprint = "", .n_ctx_train = 2048, .layers = {}};
    for (int32_t layer = 0; layer < 3; ++layer)
        shape.layers.push_back(
            {.layer = layer, .n_heads = 4, .n_kv_heads = 2, .head_dim_k = 32, .head_dim_v = 32, .sliding_window = 0});
    return shape;
}

ModelStats small_stats(const std::string& name) {
    ModelStats stats;
    stats.architecture = "llama";
    stats.model_name = name;
    stats.n_tokens = kSampleTiles * 64;
    stats.n_sample_tiles = kSampleTiles;
    stats.probe_bits = 1;
    stats.base_bits = 3;
    for (const LayerShape& shape : small_shape(name).layers) {
        LayerStats layer{.shape = shape, .heads = {}, .probe = {}};
        for (unsigned h = 0; h < 2; ++h)
            layer.heads.push_back(correlated_head(32, 7 + h + 2 * static_cast<unsigned>(shape.layer)));
        layer.probe = {.key_kl = 0.01 * (shape.layer + 1), .value_kl = shape.layer == 1 ? -0.0004 : 0.002};
        stats.layers.push_back(std::move(layer));
    }
    stats.joint.push_back({.key_bits = 3, .value_bits = 16, .window = 0, .kl = 0.02});
    return stats;
}

ReportInput small_input(const std::string& name) {
    ReportInput input;
    input.version = "test";
    input.command = "kvaq report";
    input.plan = make_uniform_plan(parse_preset("k4v2-rot-w64-s4"), small_shape(name));
    input.plan->name = name;
    input.plan->measured_how = name;
    input.plan->predicted_kl = 0.0321;
    input.plan_file = name;
    input.stats = small_stats(name);
    input.stats_file = name;
    input.sources.push_back(
        {.what = "plan", .file = name, .sha256 = std::string(64, 'a'), .command = name, .verb = "kvaq plan"});
    return input;
}

std::vector<std::string> ids_of(const Document& document) {
    std::vector<std::string> ids;
    for (const Section& section : document.sections) ids.push_back(section.id);
    return ids;
}

/// What tests/check_page.py says of a page.
ProcessResult checked(const std::string& page, const std::vector<std::string>& more = {}) {
    const TemporaryFolder folder;
    std::ofstream(folder.file("page.html"), std::ios::binary) << page;
    std::vector<std::string> command = {"python3", std::string(KVAQ_DATA_DIR) + "/../tests/check_page.py",
                                        folder.file("page.html")};
    command.insert(command.end(), more.begin(), more.end());
    return run_process(command);
}

TEST(Report, IsAWellFormedPageThatLoadsNothing) {
    const std::string page = to_html(make_report(small_input("A model")));
    const ProcessResult result = checked(page);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    EXPECT_EQ(page.find("http://"), std::string::npos);
    EXPECT_EQ(page.find("https://"), std::string::npos);
    EXPECT_EQ(to_html(make_report(small_input("A model"))), page) << "the same inputs, the same page";
}

TEST(Report, TheCheckerOfPagesIsNotBlind) {
    const std::string page = to_html(make_report(small_input("A model")));
    const auto broken = [&](const std::string& from, const std::string& to) {
        std::string text = page;
        const size_t at = text.find(from);
        EXPECT_NE(at, std::string::npos) << from;
        text.replace(at, from.size(), to);
        return checked(text).exit_code;
    };
    EXPECT_NE(broken("</h1>", "</h2>"), 0);
    EXPECT_NE(broken("<main id=\"main\">", "<main id=\"main\"><script>1</script>"), 0);
    EXPECT_NE(broken("href=\"#bits\"", "href=\"https://example.org\""), 0);
    EXPECT_NE(broken("href=\"#bits\"", "href=\"#nowhere\""), 0);
    EXPECT_NE(broken(" scope=\"row\"", ""), 0);
    EXPECT_NE(broken("role=\"img\"", "role=\"x\""), 0);
    EXPECT_NE(broken("<footer>", "<footer><img src=\"x\" />"), 0);
}

TEST(Report, HostileNamesStayText) {
    const Document document = make_report(small_input(kHostile));
    const std::string page = to_html(document);
    const ProcessResult result = checked(page);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    EXPECT_EQ(page.find("<script"), std::string::npos);
    EXPECT_EQ(page.find('\x01'), std::string::npos);
    const std::string markdown = to_markdown(document);
    // In code, Markdown shows tags as typed; elsewhere none may be left.
    EXPECT_EQ(markdown.substr(0, markdown.find('\n')).find("<script"), std::string::npos);
}

TEST(Report, HasOnlyTheSectionsThatTheInputsGive) {
    EXPECT_EQ(ids_of(make_report(small_input("m"))),
              (std::vector<std::string>{"summary", "bits", "memory", "damage", "norms", "sources"}));
    ReportInput plan_only = small_input("m");
    plan_only.stats.reset();
    EXPECT_EQ(ids_of(make_report(plan_only)), (std::vector<std::string>{"summary", "bits", "memory", "sources"}));
    ReportInput stats_only = small_input("m");
    stats_only.plan.reset();
    EXPECT_EQ(ids_of(make_report(stats_only)), (std::vector<std::string>{"summary", "damage", "norms", "sources"}));
    stats_only.stats->probe_bits = 0;
    EXPECT_EQ(ids_of(make_report(stats_only)), (std::vector<std::string>{"summary", "norms", "sources"}));
    ReportInput eval_only;
    eval_only.evals.push_back(parse_eval(committed("quality-smollm2-135m.json"), "q.json"));
    EXPECT_EQ(ids_of(make_report(eval_only)), (std::vector<std::string>{"summary", "eval", "sources"}));
    ReportInput speed_only;
    speed_only.speeds.push_back(parse_speed(committed("speed-smollm2-135m.json"), "s.json"));
    EXPECT_EQ(ids_of(make_report(speed_only)), (std::vector<std::string>{"speed", "sources"}));
    speed_only.speeds.push_back(parse_speed(committed("speed-8192-smollm2-135m.json"), "t.json"));
    EXPECT_EQ(ids_of(make_report(speed_only)), (std::vector<std::string>{"speed", "speed-2", "sources"}));
    for (const ReportInput& input : {plan_only, stats_only, eval_only, speed_only}) {
        const ProcessResult result = checked(to_html(make_report(input)));
        EXPECT_EQ(result.exit_code, 0) << result.err;
    }
}

TEST(Report, ShowsTheNumbersOfTheFilesAndNoOthers) {
    ReportInput input;
    const std::string folder = std::string(KVAQ_DATA_DIR) + "/../results/";
    input.evals.push_back(parse_eval(committed("quality-smollm2-135m.json"), "q.json"));
    input.frontier = parse_eval(committed("frontier-smollm2-135m.json"), "f.json");
    input.speeds.push_back(parse_speed(committed("speed-smollm2-135m.json"), "s.json"));
    const ProcessResult result =
        checked(to_html(make_report(input)),
                {"--eval", folder + "quality-smollm2-135m.json", "--frontier", folder + "frontier-smollm2-135m.json",
                 "--speed", folder + "speed-smollm2-135m.json"});
    EXPECT_EQ(result.exit_code, 0) << result.err;
    input.evals[0].rows[4].kl.value *= 1.01;
    EXPECT_NE(checked(to_html(make_report(input)), {"--eval", folder + "quality-smollm2-135m.json"}).exit_code, 0)
        << "a wrong number is found";
}

SuiteTable small_suite() {
    SuiteTable suite;
    suite.model = {.name = "m", .architecture = "llama", .fingerprint = ""};
    suite.caches = {{.name = "f16 (llama.cpp)", .kind = "reference", .plan_sha256 = ""},
                    {.name = "q4_0", .kind = "llama.cpp", .plan_sha256 = ""}};
    SuiteTable::Metric share{.name = "exact", .unit = "share", .larger_is_better = true, .groups = {}};
    SuiteTable::Metric nll{
        .name = "PPL", .unit = "nats per token; perplexity = exp(mean)", .larger_is_better = false, .groups = {}};
    const auto score = [](double value, std::optional<Measured> difference, double p) {
        return SuiteTable::Score{.n = 4, .mean = {.value = value, .error = 0.1}, .difference = difference, .p = p};
    };
    for (const char* length : {"1024", "2048"}) {
        share.groups.push_back(
            {.name = length, .scores = {score(0.5, {}, 1), score(0.25, Measured{.value = -0.25, .error = 0.1}, 0.03)}});
        nll.groups.push_back(
            {.name = length, .scores = {score(3, {}, 1), score(3.1, Measured{.value = 0.1, .error = 0.1}, 0.4)}});
    }
    suite.tasks.push_back({.name = "needle",
                           .says = "Codes `at` N.",
                           .n_items = 4,
                           .n_context = 2048,
                           .bits = {16, 4.5},
                           .metrics = {share, nll}});
    return suite;
}

TEST(Report, SaysWhichCacheIsWorseAtWhichTask) {
    ReportInput input = small_input("m");
    input.suite = small_suite();
    const std::string worse = "q4_0 (needle)";
    const std::string page = to_html(make_report(input));
    const ProcessResult result = checked(page);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    EXPECT_NE(page.find(worse), std::string::npos);
    EXPECT_NE(page.find("25.0 ± 10.0 (-25.0, p 0.030)"), std::string::npos);
    EXPECT_NE(page.find("22.20 ± 2.22 (+10.52 %, p 0.400)"), std::string::npos) << "exp(3.1), 100 (exp(.1) - 1)";
    EXPECT_NE(page.find("<code>at</code>"), std::string::npos);
    for (SuiteTable::Group& group : input.suite->tasks[0].metrics[0].groups) group.scores[1]->p = 0.06;
    EXPECT_EQ(to_html(make_report(input)).find(worse), std::string::npos);
    for (SuiteTable::Group& group : input.suite->tasks[0].metrics[1].groups) group.scores[1]->p = 0.01;
    EXPECT_NE(to_html(make_report(input)).find(worse), std::string::npos) << "a larger perplexity is worse";
    for (SuiteTable::Group& group : input.suite->tasks[0].metrics[1].groups) group.scores[1]->difference->value = -0.1;
    EXPECT_EQ(to_html(make_report(input)).find(worse), std::string::npos) << "better is not worse";
    for (SuiteTable::Group& group : input.suite->tasks[0].metrics[1].groups) {
        group.scores[1]->mean.value = NAN;  // perplexity of a cache that broke the model
        group.scores[1]->difference->value = NAN;
        group.scores[1]->p = NAN;
    }
    const std::string broken = to_html(make_report(input));
    EXPECT_NE(broken.find(worse), std::string::npos);
    EXPECT_EQ(broken.find("nan"), std::string::npos);
    EXPECT_EQ(checked(broken).exit_code, 0);
    input.suite = parse_suite(committed("suite-smollm2-135m.json"), "t.json");
    input.plan.reset();
    input.stats.reset();
    const ProcessResult real = checked(to_html(make_report(input)));
    EXPECT_EQ(real.exit_code, 0) << real.err;
}

TEST(Report, BitsOfTheHeatMapAreTheBytesOfTheCache) {
    const ReportInput input = small_input("m");
    const Plan& plan = *input.plan;
    double bytes = 0;
    for (const LayerPlan& layer : plan.layers) {
        for (size_t h = 0; h < layer.heads.size(); ++h)
            bytes +=
                (32 * stored_bits(plan, layer, h, Side::kKey) + 32 * stored_bits(plan, layer, h, Side::kValue)) / 8;
    }
    EXPECT_NEAR(bytes, bytes_per_token(plan), 1e-9);
    const std::string page = to_html(make_report(input));
    for (const size_t n : {4096U, 8192U, 32768U})
        EXPECT_NE(page.find(fmt::format("<data value=\"{}\">", static_cast<double>(cache_bytes(plan, n).total))),
                  std::string::npos)
            << n;
}

TEST(Report, TheVerdictIsOnThePlanThatWasMeasuredAndNoOther) {
    ReportInput input = small_input("m");
    EvalTable table;
    table.model = {.name = "m", .architecture = "llama", .fingerprint = ""};
    table.text = "wiki.txt";
    table.n_ctx = 4096;
    EvalRow row;
    row.name = "m";
    row.kind = "plan";
    row.bytes = static_cast<double>(cache_bytes(*input.plan, 4096).total);
    row.kl = {.value = 0.5, .error = 0.01};
    row.same_top = {.value = 0.6, .error = 0.01};
    table.rows.push_back(row);
    input.evals.push_back(table);
    EXPECT_EQ(make_report(input).sections[0].title, "Verdict: not recommended");
    input.evals[0].rows[0].plan_sha256 = sha256_hex(canonical_text(*input.plan));
    EXPECT_EQ(make_report(input).sections[0].title, "Verdict: not recommended");
    input.evals[0].rows[0].plan_sha256 =
        std::string(64, 'b');  // of one budget: the same name, the same size, another plan
    EXPECT_EQ(make_report(input).sections[0].title, "Verdict: usable with care") << "its own prediction";
    input.evals[0].rows[0].plan_sha256.clear();
    input.evals[0].rows[0].bytes += 64;  // the same name, another plan
    EXPECT_EQ(make_report(input).sections[0].title, "Verdict: usable with care") << "its own prediction";
    input.plan->predicted_kl = -1;
    EXPECT_EQ(make_report(input).sections[0].title, "No verdict yet");
    input.evals[0].rows[0].bytes -= 64;
    input.evals[0].rows[0].kl.value = NAN;
    EXPECT_EQ(make_report(input).sections[0].title, "Verdict: not recommended");
    EXPECT_EQ(checked(to_html(make_report(input))).exit_code, 0);
}

TEST(Report, MeasuresAreThoseOfTheStatistics) {
    const ModelStats stats = small_stats("m");
    const CacheMeasures measures = measures_of(stats);
    ASSERT_EQ(measures.norm.size(), 3U);
    for (size_t l = 0; l < 3; ++l) {
        double norm = 0;
        for (const HeadStats& head : stats.layers[l].heads) norm += head.key_norm() / 2;
        EXPECT_NEAR(measures.norm[l].key, norm, 1e-6 * norm);
        EXPECT_GE(measures.rank[l].value, 1);
        EXPECT_LE(measures.rank[l].value, 32);
        EXPECT_GT(measures.first_four[l].key, 0);
        EXPECT_LE(measures.first_four[l].key, 1);
    }
    ASSERT_EQ(measures.key_fall.median.size(), 32U);
    EXPECT_NEAR(measures.key_fall.median[0], 1, 1e-12);
    for (size_t i = 0; i < 32; ++i) {
        EXPECT_LE(measures.key_fall.low[i], measures.key_fall.median[i]);
        EXPECT_LE(measures.key_fall.median[i], measures.key_fall.high[i]);
    }
}

TEST(Report, MarkdownHasTheSameTables) {
    const Document document = make_report(small_input("m"));
    const std::string markdown = to_markdown(document);
    for (const Section& section : document.sections) {
        EXPECT_NE(markdown.find("\n## " + section.title), std::string::npos) << section.title;
        for (const Block& block : section.blocks) {
            const auto* table = std::get_if<Table>(&block);
            if (table == nullptr) continue;
            std::istringstream lines(markdown.substr(markdown.find(table->caption)));
            std::string line;
            size_t n_rows = 0;
            while (std::getline(lines, line) && (n_rows == 0 || line.rfind('|', 0) == 0))
                n_rows += line.rfind('|', 0) == 0 ? 1 : 0;
            EXPECT_EQ(n_rows, table->rows.size() + 2) << table->caption;
        }
    }
    EXPECT_EQ(markdown.find("<svg"), std::string::npos);
}

}  // namespace
}  // namespace kvaq
