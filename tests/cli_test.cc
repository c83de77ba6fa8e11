// The program kvaq as a user meets it: exit codes, one clear line per mistake, JSON that parses.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/subprocess.h"

namespace kvaq {
namespace {

namespace fs = std::filesystem;

const std::string kModel = KVAQ_MODEL;
const std::string kText = std::string(KVAQ_DATA_DIR) + "/wiki-excerpt.txt";

ProcessResult kvaq_cli(std::vector<std::string> args, const ProcessOptions& options = {}) {
    args.insert(args.begin(), KVAQ_CLI);
    return run_process(args, options);
}

std::string read_text(const std::string& path) {
    std::ostringstream text;
    text << std::ifstream(path, std::ios::binary).rdbuf();
    return text.str();
}

/// The model with one letter of its name changed: the same shape, another model.
void write_other_model(const std::string& path) {
    std::string head(1 << 16, '\0');
    std::ifstream(kModel, std::ios::binary).read(head.data(), static_cast<std::streamsize>(head.size()));
    const size_t key = head.find("general.name");
    ASSERT_NE(key, std::string::npos);
    const size_t first_letter =
        key + std::string("general.name").size() + 4 + 8;  // u32 type, u64 length, then the text
    fs::copy_file(kModel, path);
    std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
    file.seekp(static_cast<std::streamoff>(first_letter));
    file.put(head[first_letter] == 'X' ? 'Y' : 'X');
}

/// Exit code 1, nothing on stdout, and on stderr one line which starts "kvaq: error:" and names all of `things`.
/// Returns the line.
std::string expect_one_clear_line(const std::vector<std::string>& args, const std::vector<std::string>& things) {
    const ProcessResult result = kvaq_cli(args);
    std::string command = "kvaq";
    for (const std::string& arg : args) command += " " + arg;
    SCOPED_TRACE(command + "\n" + result.err);
    EXPECT_FALSE(result.timed_out);
    EXPECT_EQ(result.exit_code, 1);
    EXPECT_EQ(result.out, "");
    EXPECT_EQ(lines_starting(result.err, "kvaq: error: ").size(), 1U);
    EXPECT_EQ(lines_starting(result.err, "").size(), 1U) << "more than the one line";
    for (const std::string& thing : things)
        EXPECT_NE(result.err.find(thing), std::string::npos) << "does not name " << thing;
    return result.err;
}

class CommandLine : public testing::Test {
  protected:
    TemporaryFolder folder_;
};

TEST_F(CommandLine, NamesTheModelThatIsMissing) {
    const std::string model = folder_.file("nowhere.gguf");
    expect_one_clear_line({"inspect", model}, {model});
    expect_one_clear_line({"estimate", "-m", model}, {model});
    expect_one_clear_line({"plan", "-m", model, "--policy", "uniform:k4v2"}, {model});
    expect_one_clear_line({"eval", "-m", model, "-f", kText, "--plan", "k4v2"}, {model});
    expect_one_clear_line({"calibrate", "-m", model, "-f", kText, "-o", folder_.file("x.stats.gguf")}, {model});
}

TEST_F(CommandLine, SaysThatAModelIsTruncatedOrNoModelAtAll) {
    const std::string cut = folder_.file("cut.gguf");
    fs::copy_file(kModel, cut);
    fs::resize_file(cut, 1 << 20);
    const std::string text = folder_.file("text.gguf");
    fs::copy_file(kText, text);
    const std::string empty = folder_.file("empty.gguf");
    std::ofstream(empty).close();
    for (const std::string& model : {cut, text, empty}) {
        expect_one_clear_line({"inspect", model}, {model});
        expect_one_clear_line({"estimate", "-m", model}, {model});
        expect_one_clear_line({"eval", "-m", model, "-f", kText, "--plan", "k4v2", "-c", "256", "--chunks", "1"},
                              {model});
    }
    expect_one_clear_line({"inspect", cut}, {"truncated"});
    expect_one_clear_line({"inspect", text}, {"GGUF"});
}

TEST_F(CommandLine, NamesTheVerbFlagOrPresetItDoesNotKnow) {
    expect_one_clear_line({"fly"}, {"fly", "calibrate", "serve"});
    expect_one_clear_line({"estimate", "-m", kModel, "--colour"}, {"--colour"});
    expect_one_clear_line({"inspect", kModel, "--colour"}, {"--colour"});
    expect_one_clear_line({"estimate", "-m", kModel, "--plan", "k4v9"}, {"k4v9", "v9"});
    expect_one_clear_line({"eval", "-m", kModel, "-f", kText, "--plan", "k4v2-fast"}, {"k4v2-fast"});
    expect_one_clear_line({"eval", "-m", kModel, "-f", kText, "--types", "q9_0"}, {"q9_0", "q8_0"});
    expect_one_clear_line({"run", "--plan", "nonsense", "-m", kModel, "-p", "Hello"}, {"nonsense"});
    expect_one_clear_line({"run", "-m", kModel, "-p", "Hello"}, {"--plan"});
    expect_one_clear_line({"plan", "-m", kModel, "--policy", "random"}, {"random", "measured"});
    expect_one_clear_line({"estimate"}, {"model"});
}

TEST_F(CommandLine, NamesTheTextThatIsMissingOrTooShort) {
    const std::string nowhere = folder_.file("nowhere.txt");
    expect_one_clear_line({"eval", "-m", kModel, "-f", nowhere, "--plan", "k4v2"}, {nowhere});
    const std::string stats = folder_.file("x.stats.gguf");
    expect_one_clear_line({"calibrate", "-m", kModel, "-f", nowhere, "-o", stats}, {nowhere});
    const std::string brief = folder_.file("brief.txt");
    std::ofstream(brief) << "Too short for a chunk.";
    expect_one_clear_line({"eval", "-m", kModel, "-f", brief, "--plan", "k4v2", "-c", "256", "--chunks", "1"},
                          {"too short", "256"});
    expect_one_clear_line({"calibrate", "-m", kModel, "-f", brief, "-o", stats}, {"too short"});
    EXPECT_FALSE(fs::exists(stats));
}

TEST_F(CommandLine, RefusesAPlanMadeForAnotherModel) {
    const std::string plan = folder_.file("k4v2.plan.gguf");
    const ProcessResult made = kvaq_cli({"plan", "-m", kModel, "--policy", "uniform:k4v2", "-o", plan});
    ASSERT_EQ(made.exit_code, 0) << made.err;
    const ProcessResult own = kvaq_cli({"estimate", "-m", kModel, "--plan", plan});
    EXPECT_EQ(own.exit_code, 0) << own.err;

    const std::string other = folder_.file("other.gguf");
    write_other_model(other);
    expect_one_clear_line({"estimate", "-m", other, "--plan", plan}, {"another model"});
    expect_one_clear_line({"eval", "-m", other, "-f", kText, "--plan", plan, "-c", "256", "--chunks", "1"},
                          {"another model"});
    // The program that loads the model says it, not kvaq; it must not run on without the plan.
    const ProcessResult run = kvaq_cli({"run", "--plan", plan, "-m", other, "-p", "Hello", "-n", "4", "-no-cnv"});
    EXPECT_NE(run.exit_code, 0);
    EXPECT_NE(run.err.find("another model"), std::string::npos) << run.err;
}

TEST_F(CommandLine, CalibratesOnAfterAKillThenPlansChecksRepairsAndDrawsTheFrontier) {
    const std::string stats = folder_.file("m.stats.gguf");
    const std::vector<std::string> calibrate = {
        KVAQ_CLI, "calibrate",      "-m", kModel,        "-o", stats,         "-c", "128", "--chunks",
        "1",      "--probe-chunks", "1",  "--probe-ctx", "64", "--joint-ctx", "128"};
    {
        Process first(calibrate, {.env = {}, .timeout_seconds = 600});
        while (first.running() && !fs::exists(stats + ".partial"))
            std::this_thread::sleep_for(std::chrono::milliseconds(20));
        first.send(SIGKILL);
        ASSERT_EQ(first.wait().exit_code, 128 + SIGKILL);
    }
    ASSERT_FALSE(fs::exists(stats));
    const ProcessResult measured = run_process(calibrate, {.env = {}, .timeout_seconds = 600});
    ASSERT_EQ(measured.exit_code, 0) << measured.err;
    EXPECT_NE(measured.err.find("going on where the interrupted run stopped"), std::string::npos) << measured.err;
    const std::string plan = folder_.file("m.plan.gguf");
    const std::string floor = expect_one_clear_line(
        {"plan", "-m", kModel, "--stats", stats, "--budget", "0.1bits", "-o", plan}, {"budget", "bits"});
    const size_t from = floor.find('(') + 1;  // "at least 1.18bits (1695.94 B/token, ..."
    const std::string least = floor.substr(from, floor.find(' ', from) - from) + "B/token";
    const ProcessResult enough = kvaq_cli({"plan", "-m", kModel, "--stats", stats, "--budget", least});
    EXPECT_EQ(enough.exit_code, 0) << least << ": " << enough.err;
    expect_one_clear_line({"plan", "-m", kModel, "--stats", stats, "--budget", "many", "-o", plan}, {"many"});
    expect_one_clear_line({"plan", "-m", kModel, "--stats", stats, "--budget", "4bits", "--sinks", "65", "-o", plan},
                          {"sink", "64", "65"});
    expect_one_clear_line({"plan", "-m", kModel, "--stats", stats, "-o", plan}, {"--budget"});
    EXPECT_FALSE(fs::exists(plan));
    EXPECT_FALSE(fs::exists(stats + ".partial"));

    // Measured on the built-in text, the plan says what to think of it; a budget near the floor is no good.
    const ProcessResult checked = kvaq_cli({"plan", "-m", kModel, "--stats", stats, "--budget", "24MiB@4096", "--check",
                                            "--check-ctx", "256", "--refine", "0", "-o", plan});
    ASSERT_EQ(checked.exit_code, 0) << checked.err;
    EXPECT_NE(checked.out.find("MiB at 4096 tokens"), std::string::npos) << checked.out;
    EXPECT_NE(checked.out.find("predicted KL"), std::string::npos) << checked.out;
    EXPECT_NE(checked.out.find("verdict: "), std::string::npos) << checked.out;
    const ProcessResult low = kvaq_cli({"plan", "-m", kModel, "--stats", stats, "--budget", "1.25bits", "-c", "8192",
                                        "--check", "--check-ctx", "256", "--refine", "0"});
    ASSERT_EQ(low.exit_code, 0) << low.err;
    EXPECT_NE(low.out.find("verdict: not recommended (measured KL"), std::string::npos) << low.out;

    // A round of repairs: eight groups measured with less, and the better of the two plans.
    const ProcessResult refined = kvaq_cli({"plan", "-m", kModel, "--stats", stats, "--budget", "2.5bits", "-c", "8192",
                                            "--check", "--check-ctx", "192", "--refine", "1", "-o", plan});
    ASSERT_EQ(refined.exit_code, 0) << refined.err;
    EXPECT_NE(refined.out.find("after 1 repair"), std::string::npos) << refined.out;
    EXPECT_NE(refined.out.find("verdict: "), std::string::npos) << refined.out;
    EXPECT_EQ(kvaq_cli({"estimate", "-m", kModel, "--plan", plan}).exit_code, 0);

    // The frontier: plans solved, presets, the authors' and llama.cpp's types in one table, and a plot.
    const std::string frontier = folder_.file("frontier");
    const ProcessResult drawn = kvaq_cli({"plan", "-m", kModel, "--stats", stats, "--frontier", "-f", kText,
                                          "--check-ctx", "64", "--check-chunks", "1", "--frontier-out", frontier},
                                         {.env = {}, .timeout_seconds = 600});
    ASSERT_EQ(drawn.exit_code, 0) << drawn.err;
    for (const char* row : {"q4_0", "k4v4-tcq", "norm-greedy", "spectral", "predicted KL", "ratio"})
        EXPECT_NE(read_text(frontier + ".md").find(row), std::string::npos) << row;
    const nlohmann::json table = nlohmann::json::parse(read_text(frontier + ".json"));
    EXPECT_GT(table.at("rows").size(), 30U);
    EXPECT_EQ(read_text(frontier + ".svg").rfind("<svg", 0), 0U);

    const std::string other = folder_.file("other.gguf");
    write_other_model(other);
    expect_one_clear_line({"plan", "-m", other, "--stats", stats, "--budget", "4bits", "-o", plan}, {"another model"});
}

TEST_F(CommandLine, RefusesWhatAPolicyWouldNotKeep) {
    for (const char* policy : {"norm-greedy", "uniform:k4v2", "spectral:bits=3"})
        expect_one_clear_line({"plan", "-m", kModel, "--policy", policy, "--budget", "3bits"},
                              {policy, "--budget 3bits"});
    expect_one_clear_line({"plan", "-m", kModel, "--policy", "uniform:k4v2", "--window", "64"}, {"--window", "-w64"});
    expect_one_clear_line({"plan", "-m", kModel, "--frontier", "-f", kText, "--policy", "uniform:k4v2"},
                          {"uniform:k4v2"});
    expect_one_clear_line({"estimate", "-m", kModel, "--memory", "64"}, {"64", "MiB"});
    const ProcessResult warned = kvaq_cli({"plan", "-m", kModel, "--policy", "uniform:k2v4-tcq"});
    EXPECT_EQ(warned.exit_code, 0) << warned.err;
    EXPECT_NE(warned.err.find("fewer bits for keys than for values"), std::string::npos) << warned.err;
}

TEST_F(CommandLine, ReportsAFileItCannotWrite) {
    const std::string out = folder_.file("no/such/folder/x.plan.gguf");
    expect_one_clear_line({"plan", "-m", kModel, "--policy", "uniform:k4v2", "-o", out}, {out});
}

TEST_F(CommandLine, BenchTimesPlansAndTypesInTurn) {
    const std::string json = folder_.file("speed.json");
    const ProcessResult result = kvaq_cli({"bench", "-m", kModel, "--plan", "k4v4-rot", "--types", "f16", "-p", "8",
                                           "-n", "2", "-d", "0,40", "-r", "2", "--json", json, "--poll", "0"});
    ASSERT_EQ(result.exit_code, 0) << result.err;
    for (const char* row : {"| kvaq k4v4-rot | tg2 |", "| llama.cpp f16 | tg2 |", "| kvaq k4v4-rot | pp8 @ d40 |"})
        EXPECT_NE(result.out.find(row), std::string::npos) << row << "\n" << result.out;
    const nlohmann::json table = nlohmann::json::parse(read_text(json));
    EXPECT_EQ(table.at("rounds"), 2);
    ASSERT_EQ(table.at("rows").size(), 2U);
    EXPECT_EQ(table["rows"][1].at("depth"), 40);
    for (const nlohmann::json& speed : table["rows"][1].at("speeds")) EXPECT_GT(speed.at("median"), 0);
    EXPECT_NE(table.at("flags").get<std::string>().find("--poll 0"), std::string::npos);
    // The report takes it as it is.
    const std::string page = folder_.file("page.html");
    const ProcessResult report = kvaq_cli({"report", "--speed", json, "-o", page});
    EXPECT_EQ(report.exit_code, 0) << report.err;
    EXPECT_NE(read_text(page).find("kvaq k4v4-rot"), std::string::npos);
}

TEST_F(CommandLine, BenchSaysWhatLlamaBenchRefused) {
    expect_one_clear_line({"bench", "-m", kModel, "--plan", "k4v4", "--nonsense", "1", "-r", "1"}, {"--nonsense"});
}

TEST_F(CommandLine, ExplainsItself) {
    const ProcessResult version = kvaq_cli({"version"});
    EXPECT_EQ(version.exit_code, 0);
    EXPECT_EQ(version.out.rfind("kvaq 0.", 0), 0U) << version.out;
    EXPECT_EQ(kvaq_cli({"--version"}).out, version.out);
    const ProcessResult help = kvaq_cli({"--help"});
    EXPECT_EQ(help.exit_code, 0);
    for (const char* verb : {"calibrate", "analyze", "plan", "estimate", "eval", "inspect", "import", "export",
                             "report", "run", "chat", "serve", "perplexity", "bench", "exec"}) {
        EXPECT_NE(help.out.find(std::string("\n  ") + verb), std::string::npos) << verb;
    }
    for (const char* verb : {"calibrate", "analyze", "plan", "estimate", "eval", "bench", "inspect", "import", "export",
                             "report", "exec"}) {
        const ProcessResult own = kvaq_cli({verb, "--help"});
        EXPECT_EQ(own.exit_code, 0) << verb << own.err;
        EXPECT_NE(own.out.find("--"), std::string::npos) << verb;
    }
}

/// Long flags that a verb's --help lists.
std::vector<std::string> long_flags(const std::string& verb) {
    std::vector<std::string> flags;
    for (const std::string& line : lines_starting(kvaq_cli({verb, "--help"}).out, "  -")) {
        const size_t at = line.find("--");
        if (at != std::string::npos && at < 8)
            flags.push_back(line.substr(at, line.find_first_not_of("abcdefghijklmnopqrstuvwxyz-", at) - at));
    }
    return flags;
}

TEST_F(CommandLine, ShellsAndManKnowEveryFlag) {
    const std::string bash = folder_.file("kvaq.bash");
    std::ofstream(bash) << kvaq_cli({"completion", "bash"}).out;
    const std::string zsh = kvaq_cli({"completion", "zsh"}).out;
    const std::string man = kvaq_cli({"man"}).out;
    EXPECT_EQ(man.find('\f'), std::string::npos) << "\\f of roff, not of C++";
    const auto complete = [&](const std::string& words, const std::string& index) {
        return run_process({"bash", "-c",
                            "source " + bash + " && COMP_WORDS=(" + words + ") COMP_CWORD=" + index +
                                " && _kvaq && printf '%s\\n' \"${COMPREPLY[@]}\""});
    };
    for (const char* verb : {"calibrate", "plan", "eval", "report"}) {
        const std::vector<std::string> flags = long_flags(verb);
        EXPECT_GT(flags.size(), 5U) << verb;
        for (const std::string& flag : flags) {
            EXPECT_FALSE(lines_starting(complete(std::string("kvaq ") + verb + " " + flag, "2").out, flag).empty())
                << verb << " " << flag;
            EXPECT_NE(zsh.find(flag + "["), std::string::npos) << flag;
            std::string troff;
            for (const char c : flag) troff += c == '-' ? std::string("\\-") : std::string(1, c);
            EXPECT_NE(man.find("\\fB" + troff + "\\fR"), std::string::npos) << flag;
        }
    }
    EXPECT_EQ(complete("kvaq ser", "1").out, "serve\n");
    EXPECT_EQ(complete("kvaq serve --", "2").out, "--plan\n--kv-budget\n--kv-device\n--kv-metrics\n--kv-rewind\n");
    EXPECT_EQ(complete("kvaq calibrate --effort t", "3").out, "thorough\n");
    EXPECT_EQ(complete("kvaq completion z", "2").out, "zsh\n");
    EXPECT_EQ(complete("kvaq plan -m mod", "3").out, "\n") << "bash completes the file itself";
    expect_one_clear_line({"completion", "fish"}, {"fish", "bash", "zsh"});
}

TEST_F(CommandLine, TablesAreColouredOnATerminalOnly) {
    const std::string command = std::string(KVAQ_CLI) + " estimate -m " + kModel + " -c 4096";
    const ProcessResult terminal =
        run_process({"script", "-qec", command, "/dev/null"}, {.env = {{"TERM", "xterm"}, {"NO_COLOR", ""}}});
    ASSERT_EQ(terminal.exit_code, 0) << terminal.err;
    EXPECT_NE(terminal.out.find("\033[1mcache"), std::string::npos) << terminal.out;
    EXPECT_EQ(terminal.out.find("| f16"), std::string::npos);
    for (const ProcessOptions& options :
         {ProcessOptions{.env = {{"TERM", "xterm"}, {"NO_COLOR", "1"}}}, ProcessOptions{.env = {{"TERM", "dumb"}}}}) {
        const ProcessResult plain = run_process({"script", "-qec", command, "/dev/null"}, options);
        EXPECT_EQ(plain.out.find('\033'), std::string::npos) << plain.out;
        EXPECT_NE(plain.out.find("| f16"), std::string::npos);
    }
    EXPECT_EQ(kvaq_cli({"estimate", "-m", kModel, "-c", "4096"}, {.env = {{"TERM", "xterm"}}}).out.find('\033'),
              std::string::npos)
        << "not a terminal";
}

TEST_F(CommandLine, PlanWritesJson) {
    const std::string path = folder_.file("p.json");
    ASSERT_EQ(kvaq_cli({"plan", "-m", kModel, "--policy", "uniform:k4v2", "-c", "4096", "--json", path}).exit_code, 0);
    const nlohmann::json json = nlohmann::json::parse(read_text(path));
    EXPECT_EQ(json.at("kind"), "kvaq.plan");
    EXPECT_EQ(json.at("plan").at("layers").size(), 30U);
    EXPECT_TRUE(json.at("kl").is_null());
    EXPECT_NEAR(json.at("effective_bits").get<double>(), 3.5, 0.01);
}

TEST_F(CommandLine, PlansSayWhatMadeThem) {
    const std::string plan = folder_.file("it's a plan.gguf");
    const std::string page = folder_.file("r.md");
    const std::string command = "kvaq plan -m " + std::string(kModel) + " --policy uniform:k4v2 -o '" +
                                folder_.file("it'\\''s a plan.gguf") + "'";
    ASSERT_EQ(kvaq_cli({"plan", "-m", kModel, "--policy", "uniform:k4v2", "-o", plan}).exit_code, 0);
    EXPECT_NE(kvaq_cli({"inspect", plan}).out.find("made by: " + command + "\n"), std::string::npos) << command;
    ASSERT_EQ(kvaq_cli({"report", "--plan", plan, "--md", page}).exit_code, 0);
    EXPECT_NE(read_text(page).find("--policy uniform:k4v2 -o"), std::string::npos);
}

TEST_F(CommandLine, EstimateAndInspectGiveJsonThatAgrees) {
    const ProcessResult inspected = kvaq_cli({"inspect", kModel, "--json", "-"});
    ASSERT_EQ(inspected.exit_code, 0) << inspected.err;
    const nlohmann::json model = nlohmann::json::parse(inspected.out);
    EXPECT_EQ(model.at("architecture"), "llama");
    EXPECT_EQ(model.at("layers").size(), 30U);
    size_t f16_bytes_per_token = 0;
    for (const auto& layer : model.at("layers")) {
        f16_bytes_per_token += layer.at("n_kv_heads").get<size_t>() *
                               (layer.at("head_dim_k").get<size_t>() + layer.at("head_dim_v").get<size_t>()) * 2;
    }

    const std::string path = folder_.file("estimate.json");
    const ProcessResult estimated = kvaq_cli(
        {"estimate", "-m", kModel, "-c", "4096", "--plan", "f16,k4v4-rot,k2v2", "--memory", "64MiB", "--json", path});
    ASSERT_EQ(estimated.exit_code, 0) << estimated.err;
    const nlohmann::json json = nlohmann::json::parse(read_text(path));
    ASSERT_EQ(json.at("plans").size(), 3U);
    EXPECT_EQ(json.at("llama.cpp").at(0).at("bytes"), f16_bytes_per_token * 4096);
    double more = 1e9;
    for (const auto& plan : json.at("plans")) {  // fewer bits: fewer bytes, a longer context in the same memory
        EXPECT_LT(plan.at("bytes").get<double>(), more);
        more = plan.at("bytes").get<double>();
        EXPECT_LE(plan.at("bytes_per_token").get<double>(),
                  static_cast<double>(f16_bytes_per_token) * plan.at("effective_bits").get<double>() / 16 * 1.001);
    }
    EXPECT_LT(json["plans"][0]["largest_context"].get<size_t>(), json["plans"][1]["largest_context"].get<size_t>());
    EXPECT_LT(json["plans"][1]["largest_context"].get<size_t>(), json["plans"][2]["largest_context"].get<size_t>());

    // What a process reserves is what it says itself, to the digit it prints.
    const ProcessResult run =
        kvaq_cli({"run",  "--plan", "k4v4-rot", "--kv-rewind", "300", "-m", kModel, "-c",      "4096", "-b",
                  "1024", "-ub",    "256",      "-n",          "1",   "-p", "Hi",   "-no-cnv", "-t",   "1"});
    ASSERT_EQ(run.exit_code, 0) << run.err;
    const auto said = [&](const std::string& before, const std::string& after) {
        const size_t end = run.err.find(after, run.err.find(before));
        const size_t begin = run.err.rfind(' ', end - 1);
        return end == std::string::npos ? -1.0 : std::strtod(run.err.c_str() + begin, nullptr);
    };
    const auto process_bytes = [&](const std::string& rewind) {
        const ProcessResult smaller = kvaq_cli({"estimate", "-m", kModel, "-c", "4096", "--plan", "k4v4-rot", "-b",
                                                "1024", "--ub", "256", "--kv-rewind", rewind, "--json", "-"});
        EXPECT_EQ(smaller.exit_code, 0) << smaller.err;
        return nlohmann::json::parse(smaller.out).at("plans").at(0).at("process_bytes").get<double>();
    };
    const double with = process_bytes("300");
    const double without = process_bytes("0");
    EXPECT_NEAR(with / (1 << 20), said("at exit:", " MiB reserved") + said("keeps one batch", " MiB"), 0.11) << run.err;
    EXPECT_GT(with - without, 300.0 * static_cast<double>(f16_bytes_per_token));
    EXPECT_LT(without, json["plans"][1].at("process_bytes").get<double>());

    const std::string plan_path = folder_.file("x.plan.gguf");
    ASSERT_EQ(kvaq_cli({"plan", "-m", kModel, "--policy", "uniform:k4v2", "-o", plan_path}).exit_code, 0);
    const ProcessResult plan = kvaq_cli({"inspect", plan_path, "--json", "-"});
    ASSERT_EQ(plan.exit_code, 0) << plan.err;
    EXPECT_EQ(nlohmann::json::parse(plan.out).at("layers").size(), 30U);
}

/// Sum of the "KV buffer size" lines that llama.cpp prints when the context is really made (its fitting pass prints zeros), in MiB with two digits.
double printed_cache_mib(const std::string& model, const std::string& type) {
    const ProcessResult run = run_process({KVAQ_BIN_DIR "/llama-completion", "-m", model, "-c", "4096", "-n", "1", "-p",
                                           "Hi", "-no-cnv", "-ctk", type, "-ctv", type, "-fa", "on", "-t", "1", "-v"});
    EXPECT_EQ(run.exit_code, 0) << run.err;
    double sum = 0;
    std::istringstream lines(run.err + run.out);
    for (std::string line; std::getline(lines, line);) {
        const size_t at = line.find("KV buffer size =");
        if (at != std::string::npos)
            sum += std::strtod(line.c_str() + at + std::string("KV buffer size =").size(), nullptr);
    }
    return sum;
}

void expect_estimates_as_printed(const std::string& model, const std::string& json_path) {
    const ProcessResult estimated =
        kvaq_cli({"estimate", "-m", model, "-c", "4096", "--plan", "f16", "--json", json_path});
    ASSERT_EQ(estimated.exit_code, 0) << estimated.err;
    const nlohmann::json json = nlohmann::json::parse(read_text(json_path));
    size_t seen = 0;
    for (const auto& row : json.at("llama.cpp")) {
        const std::string type = row.at("type");
        if (type != "f16" && type != "q8_0" && type != "q4_0") continue;
        ++seen;
        EXPECT_NEAR(row.at("bytes").get<double>() / (1 << 20), printed_cache_mib(model, type), 0.011)
            << type;  // two caches, two digits each
    }
    EXPECT_EQ(seen, 3U);
}

TEST_F(CommandLine, EstimatesForLlamaCppsTypesAreWhatItPrints) {
    expect_estimates_as_printed(kModel, folder_.file("estimate.json"));
}

TEST_F(CommandLine, EstimatesForSlidingWindowsAreWhatLlamaCppPrints) {
    const std::string gemma = fs::path(kModel).parent_path() / "gemma-3-270m-q4_k_m.gguf";
    if (!fs::exists(gemma)) GTEST_SKIP() << "needs gemma-3-270m: scripts/fetch_gemma.sh";
    expect_estimates_as_printed(gemma, folder_.file("estimate.json"));
    // And ours are what the drop-in says when it starts.
    for (const bool full : {false, true}) {
        std::vector<std::string> args = {
            "estimate", "-m", gemma, "-c", "2048", "--plan", "k4v4-rot", "--json", folder_.file("ours.json")};
        std::vector<std::string> run = {"run", "--plan", "k4v4-rot", "-m", gemma,     "-c", "2048",
                                        "-n",  "1",      "-p",       "Hi", "-no-cnv", "-t", "1"};
        for (std::vector<std::string>* one : {&args, &run}) {
            if (full) one->push_back("--swa-full");
        }
        ASSERT_EQ(kvaq_cli(args).exit_code, 0);
        const nlohmann::json json = nlohmann::json::parse(read_text(folder_.file("ours.json")));
        char mib[32];
        std::snprintf(mib, sizeof mib, "%.1f MiB", json.at("plans").at(0).at("bytes").get<double>() / (1 << 20));
        const ProcessResult started = kvaq_cli(run);
        EXPECT_EQ(started.exit_code, 0) << started.err;
        EXPECT_EQ(
            lines_starting(started.err, "kvaq: " + std::string(mib) + " for a full context of 2048 tokens").size(), 1U)
            << mib << "\n"
            << started.err;
    }
}

TEST_F(CommandLine, RunAndExecStartUnmodifiedProgramsUnderThePlan) {
    const std::vector<std::string> tail = {
        "-m", kModel, "-p", "The capital of France is", "-n", "8", "--temp", "0", "-no-cnv", "-t", "2"};
    std::vector<std::string> run_args = {"run", "--plan", "k4v2", "--kv-rewind=300"};
    run_args.insert(run_args.end(), tail.begin(), tail.end());
    const ProcessResult run = kvaq_cli(run_args);
    ASSERT_EQ(run.exit_code, 0) << run.err;
    EXPECT_EQ(lines_starting(run.err, "kvaq: plan k4v2").size(), 1U) << run.err;
    EXPECT_EQ(lines_starting(run.err, "kvaq: rewind 300: f16 rows of as many more tokens are kept, 7.0 MiB for").size(),
              1U)
        << run.err;
    EXPECT_GT(run.out.size(), std::string("The capital of France is").size() + 8);

    std::vector<std::string> exec_args = {"exec", "--plan", "k4v2", "--", "llama-completion"};
    exec_args.insert(exec_args.end(), tail.begin(), tail.end());
    const ProcessResult exec = kvaq_cli(exec_args);
    EXPECT_EQ(exec.exit_code, 0) << exec.err;
    EXPECT_EQ(exec.out, run.out);

    const ProcessResult absent = kvaq_cli({"exec", "--plan", "k4v2", "--", "llama-nonesuch"});
    EXPECT_EQ(absent.exit_code, 1);
    EXPECT_NE(absent.err.find("llama-nonesuch"), std::string::npos) << absent.err;
}

}  // namespace
}  // namespace kvaq
