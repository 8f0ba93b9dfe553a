"""The page's style sheet: light and dark, wide and narrow, screen and paper."""

STYLE = """
:root{--font:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;
--bg:#f6f7f8;--panel:#fff;--ink:#1b2126;--muted:#626d77;--line:#dfe3e7;--blue:#1f66b0;--orange:#c05a10;
--green:#1d8a4e;--red:#c62f3b;--tag:#e8edf2}
@media (prefers-color-scheme:dark){:root{--bg:#12161a;--panel:#1a2026;--ink:#e4e8ec;--muted:#98a4af;
--line:#333c45;--blue:#6fb0f2;--orange:#f0a05a;--green:#5cc98a;--red:#f2737d;--tag:#2a333c}}
*{box-sizing:border-box}
html{scroll-behavior:smooth;scroll-padding-top:3.2rem}
body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 var(--font)}
header,main,footer{max-width:1340px;margin:0 auto;padding:0 1.2rem}
header{padding-top:1.6rem}
h1{margin:0;font-size:1.75rem;overflow-wrap:anywhere}
h2{margin:0 0 .3rem;font-size:1.3rem}
h3{margin:1.2rem 0 .5rem;font-size:1.02rem}
.headline{margin:.2rem 0 1rem;color:var(--muted)}
.lead{margin:.1rem 0 1rem;color:var(--muted);max-width:75ch}
p{max-width:90ch}
a{color:var(--blue)}
code{font-size:.92em}
nav{position:sticky;top:0;z-index:2;background:var(--bg);border-bottom:1px solid var(--line);
display:flex;flex-wrap:wrap;justify-content:center;gap:.2rem 1.4rem;padding:.5rem 1rem}
nav a{text-decoration:none;font-weight:600;font-size:.92rem}
section{margin:1.6rem 0 2.6rem}
footer{color:var(--muted);font-size:.88rem;padding-bottom:2rem}
figure{margin:0;background:var(--panel);border:1px solid var(--line);border-radius:8px;padding:.7rem;
min-width:0}
figcaption{color:var(--muted);font-size:.88rem;margin-top:.4rem;line-height:1.4}
figcaption b{color:var(--ink)}
figure svg{display:block;width:100%;height:auto;margin:0 auto;overflow:visible}
svg *{stroke-linejoin:round;stroke-linecap:butt}
.grid{display:grid;gap:1rem;grid-template-columns:repeat(auto-fill,minmax(min(100%,370px),1fr));
align-items:start;margin-bottom:1rem}
.grid.small{grid-template-columns:repeat(auto-fill,minmax(min(100%,330px),1fr))}
.grid.wide{grid-template-columns:repeat(auto-fit,minmax(min(100%,460px),1fr))}
.tiles{display:grid;gap:.7rem;grid-template-columns:repeat(auto-fill,minmax(138px,1fr));margin:0 0 1rem}
.tiles div{background:var(--panel);border:1px solid var(--line);border-radius:8px;padding:.55rem .8rem}
.tiles .broad{grid-column:span 2}
.tiles dt{color:var(--muted);font-size:.8rem}
.tiles dd{margin:0;font-size:1.15rem;font-weight:600;font-variant-numeric:tabular-nums;line-height:1.3}
.tiles dd.note{font-size:.8rem;font-weight:400;color:var(--muted);margin-top:.15rem}
.event{border-top:1px solid var(--line);padding:.2rem 0 1.1rem}
.rank{display:inline-block;min-width:1.6em;text-align:center;border-radius:1em;background:var(--blue);
color:var(--bg);font-size:.9em}
.tag{display:inline-block;background:var(--tag);border-radius:5px;padding:.05em .5em;font-size:.82rem;
font-weight:500;margin-left:.25rem}
.tag.true{color:var(--green)}.tag.false{color:var(--red)}.tag.flag{color:var(--orange)}
.card{display:grid;gap:1rem;grid-template-columns:minmax(0,1fr) 290px;align-items:start}
.card>div{display:grid;gap:.8rem;grid-template-columns:minmax(0,1fr);min-width:0}
@media (min-width:1180px){.card>div{grid-template-columns:350px minmax(0,1fr)}}
@media (max-width:820px){.card{grid-template-columns:minmax(0,1fr)}}
.cutouts{display:grid;grid-template-columns:repeat(auto-fit,minmax(110px,1fr));gap:.5rem}
@media (min-width:1180px),(max-width:560px){.cutouts{grid-template-columns:1fr 1fr}}
.wide-figure{overflow-x:auto}
.wide-figure svg{min-width:430px}
.cutout{padding:.35rem}
.cutout figcaption{font-size:.78rem;margin-top:.2rem}
.stamp{position:relative;max-width:170px;margin:0 auto}
.stamp img{display:block;width:100%;image-rendering:pixelated;border-radius:3px}
.cross{position:absolute;width:0;height:0}
.cross:before,.cross:after{content:"";position:absolute;background:#3ce0ff;box-shadow:0 0 1px #000}
.cross:before{width:9%;min-width:9px;height:1.5px;left:8px;top:-.75px}
.cross:after{height:9px;width:1.5px;top:-17px;left:-.75px}
dl{margin:0}
.card dl,section>dl{font-size:.9rem}
.card dl div,section>dl div{display:flex;justify-content:space-between;gap:.8rem;
border-bottom:1px solid var(--line);padding:.16rem 0}
.card dt,section>dl dt{color:var(--muted);white-space:nowrap}
.card dd,section>dl dd{margin:0;text-align:right;font-variant-numeric:tabular-nums}
section>dl{max-width:560px;margin-top:.8rem}
.scroll{overflow-x:auto;margin:.4rem 0}
table{border-collapse:collapse;font-size:.88rem;font-variant-numeric:tabular-nums;
background:var(--panel);border:1px solid var(--line)}
th,td{padding:.28rem .7rem;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
th{color:var(--muted);font-weight:600;vertical-align:bottom;white-space:normal}
.left{text-align:left}
.whole{white-space:nowrap}
td.left{white-space:normal;min-width:7ch}
.track{display:inline-block;width:110px;height:.7em;background:var(--tag);border-radius:3px;
overflow:hidden}
.bar{display:block;height:100%;background:var(--blue)}
.missing{border:1px dashed var(--muted);border-radius:8px;padding:.7rem .9rem;color:var(--muted);
margin:0 0 1rem}
details{margin:.8rem 0}summary{cursor:pointer;font-weight:600}
.versions{color:var(--muted);font-size:.82rem;overflow-wrap:anywhere}
@media print{nav{display:none}body{background:#fff}.event,figure{break-inside:avoid}}
"""
