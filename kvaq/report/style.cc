#include "kvaq/report/style.h"

#include <fmt/format.h>

namespace kvaq {
namespace {

constexpr Palette kLight = {
    .page = "#ffffff",
    .surface = "#f6f7f9",
    .ink = "#1b1e24",
    .soft = "#545b66",
    .grid = "#d9dde3",
    .link = "#0b5cad",
    .marked = "#fff4d6",
    .series = {"#0069a8", "#b85c00", "#00795a", "#a3427f", "#5f6672"},
    .ramp = {"#dfebf7", "#cfe1f2", "#bad6ec", "#a1c9e6", "#74b0da", "#4a94ca", "#2272b4", "#0b5394", "#08306b"},
    .ramp_ink = {"#1b1e24", "#1b1e24", "#1b1e24", "#1b1e24", "#1b1e24", "#0c0e12", "#ffffff", "#ffffff", "#ffffff"},
};

constexpr Palette kDark = {
    .page = "#14161a",
    .surface = "#1c1f25",
    .ink = "#e6e8ec",
    .soft = "#a9b0bb",
    .grid = "#3a3f49",
    .link = "#8cc2ff",
    .marked = "#3a3216",
    .series = {"#6cb8f0", "#f0a53a", "#3fc79a", "#e79cc8", "#b0b6c1"},
    .ramp = {"#18304a", "#19395a", "#1a446b", "#1f5788", "#296ba3", "#4a8fc6", "#74aedb", "#a1cae8", "#d0e4f5"},
    .ramp_ink = {"#ffffff", "#ffffff", "#ffffff", "#ffffff", "#ffffff", "#0c0e12", "#0c0e12", "#0c0e12", "#0c0e12"},
};

std::string properties(const Palette& p) {
    std::string out = fmt::format("--page:{};--surface:{};--ink:{};--soft:{};--grid:{};--link:{};--marked:{};", p.page,
                                  p.surface, p.ink, p.soft, p.grid, p.link, p.marked);
    for (size_t i = 0; i < p.series.size(); ++i) out += fmt::format("--s{}:{};", i, p.series[i]);
    for (size_t i = 0; i < p.ramp.size(); ++i)
        out += fmt::format("--r{0}:{1};--t{0}:{2};", i, p.ramp[i], p.ramp_ink[i]);
    return out;
}

constexpr const char* kPageRules = R"(*{box-sizing:border-box}
html{background:var(--page);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;-webkit-text-size-adjust:100%}
body{max-width:1100px;margin:0 auto;padding:0 16px 48px}
header{padding:28px 0 4px}
h1{font-size:1.7rem;line-height:1.2;margin:0 0 .3rem;overflow-wrap:anywhere;text-wrap:balance}
header p{margin:0;color:var(--soft);overflow-wrap:anywhere}
h2{font-size:1.25rem;margin:0 0 .5rem;padding-top:1.1rem;border-top:1px solid var(--grid)}
section{margin-top:1.6rem}
p{margin:.5rem 0;max-width:72ch;overflow-wrap:anywhere}
a{color:var(--link)}
nav ul{list-style:none;display:flex;flex-wrap:wrap;gap:.25rem 1.1rem;margin:.9rem 0 0;padding:0}
nav a{display:inline-block;padding:.2rem 0}
.skip{position:absolute;left:-999px}
.skip:focus{left:8px;top:8px;background:var(--surface);padding:8px;z-index:1}
:focus-visible{outline:2px solid var(--link);outline-offset:2px}
code{font:.87em ui-monospace,SFMono-Regular,Menlo,"DejaVu Sans Mono",monospace;background:var(--surface);padding:.1em .3em;border-radius:3px;overflow-wrap:anywhere}
.key{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:10px;margin:1rem 0}
.key div{background:var(--surface);border:1px solid var(--grid);border-radius:6px;padding:10px 14px}
.key dt{color:var(--soft);font-size:.85rem}
.key dd{margin:0;font-size:1.5rem;line-height:1.3;font-weight:600}
.key .note{display:block;font-size:.8rem;font-weight:400;color:var(--soft);line-height:1.35}
.scroll{overflow-x:auto;margin:.8rem 0;position:relative}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
caption{text-align:left;color:var(--soft);padding-bottom:.35rem}
th,td{text-align:left;padding:.3rem .6rem;border-bottom:1px solid var(--grid);vertical-align:top;white-space:nowrap}
thead th{color:var(--soft);font-weight:600;vertical-align:bottom;white-space:normal;min-width:4.2em}
tbody th{font-weight:500;position:sticky;left:0;background:var(--page)}
.n{text-align:right}
.wrap td,.wrap th{white-space:normal}
tr.this th,tr.this td{background:var(--marked);font-weight:600}
.unseen{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);white-space:nowrap}
details{margin:.6rem 0}
summary{cursor:pointer;color:var(--link);padding:.2rem 0}
.charts{display:grid;gap:14px;margin:1rem 0}
figure{margin:0;padding:12px 14px;background:var(--surface);border:1px solid var(--grid);border-radius:6px;min-width:0}
figcaption{font-weight:600;margin-bottom:.3rem}
.says{font-size:.9rem;color:var(--soft);margin:.35rem 0 0;max-width:80ch}
svg{display:block;width:100%;height:auto}
.half figure{max-width:560px}
.narrow{display:none}
footer{margin-top:2rem;border-top:1px solid var(--grid);color:var(--soft);font-size:.88rem}
@media(min-width:860px){.many{grid-template-columns:1fr 1fr}}
@media(max-width:620px){tbody th{white-space:normal;max-width:9.5em;overflow-wrap:break-word}h1{font-size:1.35rem}.wide{display:none}.narrow{display:block}figure{padding:10px 8px}
.key{grid-template-columns:1fr 1fr}.key div{padding:8px 10px}.key dd{font-size:1.2rem}}
@media print{nav,.skip{display:none}figure,table{break-inside:avoid}}
)";

}  // namespace

const Palette& light_palette() noexcept { return kLight; }
const Palette& dark_palette() noexcept { return kDark; }

std::string palette_style() {
    return ":root{color-scheme:light dark;" + properties(kLight) + "}\n@media(prefers-color-scheme:dark){:root{" +
           properties(kDark) + "}}\n";
}

std::string page_style() { return palette_style() + kPageRules; }

std::string chart_style() {
    std::string out =
        "svg text{font-family:system-ui,-apple-system,\"Segoe UI\",Roboto,\"DejaVu Sans\",sans-serif;fill:var(--ink)}\n"
        ".bg{fill:var(--surface)}svg .soft{fill:var(--soft)}svg .end{text-anchor:end}svg "
        ".mid{text-anchor:middle}.grid{stroke:var(--grid)}.axis{stroke:var(--soft)}\n"
        ".mark{stroke:var(--surface);stroke-width:1}.line{fill:none;stroke-width:2;stroke-linejoin:round}.err{stroke-"
        "width:1.5}.band{fill-opacity:.16}\n";
    for (size_t i = 0; i < kSeriesColours; ++i)
        out += fmt::format(
            ".line.c{0},.err.c{0}{{stroke:var(--s{0})}}.mark.c{0},.band.c{0},.bar.c{0}{{fill:var(--s{0})}}", i);
    for (size_t i = 0; i < kRampSteps; ++i)
        out += fmt::format(".q{0}{{fill:var(--r{0})}}svg .t{0}{{fill:var(--t{0})}}", i);
    return out + "\n";
}

}  // namespace kvaq
