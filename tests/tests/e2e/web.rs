//! The web page in a real browser: what it shows follows the daemon, by keyboard and for screen readers too.

mod browser;

use std::{env, fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use browser::{Answer, Browser, DOWN, ENTER, ESCAPE, exchange};
use tracker_lab::daemon::LATER;
use tracker_lab::{Config, Lab, Tracker};

/// The page's port, in the hub's own network namespace.
const PORT: u16 = 9470;
const URL: &str = "http://127.0.0.1:9470/";
/// Where the script of axe-core is; `cargo xtask test` sets it.
const AXE: &str = "TRACKER_AXE";
/// Where the pictures of the documentation are to be written; `cargo xtask docs --screenshots` sets it.
const PICTURES: &str = "TRACKER_SCREENSHOTS";

fn config(services: &str, api: &str) -> Config {
    Config::new(format!(
        "[api]\nlisten = \"127.0.0.1:{PORT}\"\n{api}\n{services}"
    ))
}

fn ask(lab: &Lab, method: &str, path: &str, more: &str) -> Result<(u16, Answer)> {
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{PORT}\r\nConnection: close\r\n{more}\r\n"
    );
    exchange(&lab.hub, PORT, request.as_bytes())
}

/// A condition on the row of a service.
fn row(name: &str, verdict: &str) -> String {
    format!(
        "[...document.querySelectorAll('.row')].some(row => row.querySelector('.open').textContent === '{name}' && \
         row.dataset.verdict === '{verdict}' && row.querySelector('.verdict').textContent === '{verdict}')"
    )
}

/// Finds no fault of WCAG that is serious or critical, in light and in dark.
fn accessible(browser: &Browser<'_>, what: &str) -> Result<()> {
    let Some(script) = env::var_os(AXE) else {
        return Ok(());
    };
    let script = fs::read_to_string(Path::new(&script))
        .with_context(|| format!("read {}", Path::new(&script).display()))?;
    browser.run(&script)?;
    for theme in ["light", "dark"] {
        browser.run(&format!(
            "document.documentElement.dataset.theme = '{theme}'"
        ))?;
        // Colours that are under way from one theme to the other are neither.
        browser.run("return Promise.all(document.getAnimations().map(one => one.finished))")?;
        let found = browser.run(
            "return axe.run(document, {resultTypes: ['violations']}).then(({violations}) => violations \
             .filter(({impact}) => impact === 'serious' || impact === 'critical') \
             .map(({id, nodes}) => `${id}: ${nodes.map(({html}) => html).join(' ')}`))",
        )?;
        ensure!(
            found.as_array().is_some_and(Vec::is_empty),
            "axe-core, {what}, {theme}: {found:#}"
        );
    }
    Ok(())
}

fn quiet(browser: &Browser<'_>) -> Result<()> {
    let said = browser.console()?;
    ensure!(said.is_empty(), "the console: {said:#?}");
    Ok(())
}

#[test]
fn files_come_with_headers_that_keep_others_out() -> Result<()> {
    let lab = Lab::new()?;
    let services = lab.service().toml("fw-1");
    let tracker = Tracker::start(&lab.hub, config(&services, ""))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    for path in ["/", "/app.js"] {
        assert_eq!(ask(&lab, "GET", path, "")?.0, 404, "{path} without `web`");
    }

    assert!(tracker.reload(config(&services, "web = true"))?);
    let mut page = ask(&lab, "GET", "/", "");
    while !matches!(page, Ok((200, _))) {
        tracker_lab::interrupt::check()?;
        page = ask(&lab, "GET", "/", "");
    }
    let (_, page) = page?;
    let head = page.head.to_lowercase();
    for header in [
        "content-type: text/html; charset=utf-8",
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; frame-ancestors 'none'; \
         base-uri 'none'; form-action 'none'",
        "x-content-type-options: nosniff",
        "referrer-policy: no-referrer",
        "cache-control: no-cache",
    ] {
        assert!(head.contains(header), "{header}: {head}");
    }
    let text = String::from_utf8(page.body)?;
    assert!(text.starts_with("<!doctype html>"), "{text}");

    let tag = page
        .head
        .lines()
        .find_map(|line| line.strip_prefix("etag: "))
        .context("find the tag")?;
    let (status, again) = ask(&lab, "GET", "/", &format!("If-None-Match: {tag}\r\n"))?;
    assert_eq!((status, again.body.len()), (304, 0));
    for method in ["POST", "PUT", "DELETE"] {
        assert_eq!(ask(&lab, method, "/", "")?.0, 405, "{method}");
    }
    assert_eq!(ask(&lab, "GET", "/none.js", "")?.0, 404);
    Ok(())
}

#[test]
fn page_follows_the_daemon() -> Result<()> {
    let lab = Lab::new()?;
    let service = lab.service();
    let services = service.toml("fw-1") + "[[chain]]\nname = \"internet\"\nservices = [\"fw-1\"]\n";
    let mut tracker = Tracker::start(&lab.hub, config(&services, "web = true"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    if env::var_os(AXE).is_none() {
        tracker_lab::skip::report(
            module_path!(),
            "the checks by axe-core: $TRACKER_AXE names no axe.min.js",
        );
    }

    let browser = Browser::start(&lab.hub, 1400, 900)?;
    browser.open(URL)?;
    browser.wait_for("the service", &row("fw-1", "up"))?;
    browser.wait_for(
        "its figures",
        "/s$/.test(document.querySelector('.row .rtt').innerText.trim())",
    )?;
    browser.wait_for(
        "the events",
        "document.querySelector('.entry')?.innerText.includes('fw-1')",
    )?;
    let text = browser.text()?;
    for part in [
        "hub-1",
        "1 up",
        "internet",
        &service.interface,
        &service.endpoint.to_string(),
        &service.behind.to_string(),
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    accessible(&browser, "the list")?;
    // Would be gone after another load of the page.
    browser.run("window.same = true")?;

    service.break_forwarding()?;
    let shown = browser.wait_for("down", &row("fw-1", "down"))?;
    eprintln!("shown as down {shown:?} after the break");
    browser.wait_for(
        "its cause",
        "document.querySelector('.row .cause').innerText.includes('no-reply')",
    )?;
    browser.wait_for(
        "the words",
        "document.getElementById('live').textContent.includes('fw-1 is down, no-reply')",
    )?;
    browser.wait_for(
        "the loss",
        "document.querySelector('.row .loss .figure').dataset.bad === 'yes'",
    )?;
    browser.wait_for(
        "the chain",
        "document.querySelector('.lane').dataset.verdict === 'down'",
    )?;
    browser.wait_for("the title", "document.title.startsWith('1 down')")?;
    browser.wait_for(
        "the event, its burst folded",
        "(text => text.includes('fw-1') && text.includes('down') && text.includes('no-reply')) \
         (document.querySelector('.entry').innerText) && document.querySelector('.entry details') !== null",
    )?;
    accessible(&browser, "the list with a service that is down")?;
    service.mend()?;
    browser.wait_for("up", &row("fw-1", "up"))?;
    quiet(&browser)?;

    tracker.terminate()?;
    browser.wait_for(
        "the banner",
        "!document.getElementById('banner').hidden && document.body.dataset.old === 'yes'",
    )?;
    tracker.run()?;
    browser.wait_for(
        "no banner",
        "document.getElementById('banner').hidden && document.body.dataset.old === 'no'",
    )?;
    browser.wait_for("up again", &row("fw-1", "up"))?;
    browser.wait_for(
        "the events again",
        "document.getElementById('fresh').textContent === 'live'",
    )?;
    // That the daemon was away is said by the browser, not by the page.
    let said = browser.console()?;
    let others: Vec<_> = said
        .iter()
        .filter(|said| !said.contains("net::ERR_"))
        .collect();
    assert!(others.is_empty(), "{others:#?}");

    service.break_forwarding()?;
    browser.wait_for("down by the new daemon", &row("fw-1", "down"))?;
    service.mend()?;
    browser.wait_for("up", &row("fw-1", "up"))?;
    tracker.service("set fw-1 --state maintenance --reason rules")?;
    browser.wait_for(
        "the admin state",
        "document.querySelector('.row .admin').textContent.includes('maintenance')",
    )?;
    assert_eq!(
        browser.run("return window.same")?,
        true,
        "never loaded again"
    );
    quiet(&browser)
}

#[test]
fn keys_search_filter_and_open() -> Result<()> {
    let lab = Lab::with_services(3)?;
    let names = ["fw-1", "ids", "lb"];
    let services: String = lab
        .services()
        .iter()
        .zip(names)
        .map(|(service, name)| service.toml(name))
        .collect();
    let tracker = Tracker::start(&lab.hub, config(&services, "web = true"))?;
    for name in names {
        tracker.wait_verdict(name, "up", "replied")?;
    }
    lab.services()[1].break_forwarding()?;
    tracker.wait_verdict("ids", "down", "no-reply")?;
    let browser = Browser::start(&lab.hub, 1400, 900)?;
    browser.open(URL)?;
    let shown = |names: &str| {
        format!(
            "[...document.querySelectorAll('.row')].filter(row => !row.hidden).map(row => row.row.name).join() === '{names}'"
        )
    };
    let focused =
        |name: &str| format!("document.activeElement.closest('.row')?.row.name === '{name}'");
    browser.wait_for("problems first", &shown("ids,fw-1,lb"))?;

    browser.press("n")?;
    browser.wait_for("only what is not up", &shown("ids"))?;
    browser.press("n")?;
    browser.wait_for("all", &shown("ids,fw-1,lb"))?;

    browser.press("/")?;
    browser.wait_for("the search", "document.activeElement.id === 'search'")?;
    browser.press(&lab.services()[2].endpoint.to_string())?;
    browser.wait_for("what has this endpoint", &shown("lb"))?;
    browser.press("nothing")?;
    browser.wait_for(
        "nothing",
        &format!("{} && !document.getElementById('none').hidden", shown("")),
    )?;
    browser.press(ESCAPE)?;
    browser.wait_for("all", &shown("ids,fw-1,lb"))?;

    browser.press(DOWN)?;
    browser.wait_for("the first", &focused("ids"))?;
    browser.press(DOWN)?;
    browser.wait_for("the second", &focused("fw-1"))?;
    browser.press(ENTER)?;
    browser.wait_for(
        "the service opened",
        "!document.getElementById('detail').hidden",
    )?;
    browser.wait_for(
        "its path",
        "document.querySelectorAll('#detail .way li').length === 6",
    )?;
    browser.wait_for(
        "its figures",
        "/\\d/.test(document.querySelector('#detail tbody td:nth-child(3)')?.innerText)",
    )?;
    browser.wait_for(
        "its chart",
        "document.querySelector('#detail .chart .line:not(.tail)').getAttribute('d').includes('L')",
    )?;
    assert_eq!(
        browser.run("return document.activeElement.id")?,
        "detail-title"
    );
    accessible(&browser, "a service that is open")?;
    browser.press(ESCAPE)?;
    browser.wait_for(
        "closed",
        &format!(
            "document.getElementById('detail').hidden && {}",
            focused("fw-1")
        ),
    )?;

    // What is broken is marked where the path breaks.
    browser.run("document.querySelector('.row .open').click()")?;
    browser.wait_for(
        "the place",
        "document.querySelector('#detail .way .behind').dataset.broken === 'yes'",
    )?;
    browser.wait_for(
        "the cause there",
        "document.querySelector('#detail .way .behind .fault').innerText.includes('no-reply')",
    )?;
    browser.press(ESCAPE)?;

    browser.press("?")?;
    browser.wait_for("the help", "document.getElementById('help').open")?;
    browser.press(ESCAPE)?;
    browser.wait_for("no help", "!document.getElementById('help').open")?;

    // Nothing is wider than the window of a phone.
    browser.resize(360, 740)?;
    browser.wait_for("the phone's layout", "innerWidth < 600")?;
    accessible(&browser, "on a phone")?;
    assert_eq!(
        browser.run("return document.documentElement.scrollWidth <= innerWidth")?,
        true
    );
    browser.run("document.querySelector('.row .open').click()")?;
    browser.wait_for(
        "the service covers the list",
        "document.getElementById('detail').getBoundingClientRect().height >= innerHeight",
    )?;
    quiet(&browser)
}

/// A pool opened: each member by its name, which are in use, and how many must be up.
#[test]
fn a_pool_shows_its_members_in_use() -> Result<()> {
    let lab = Lab::with_services(3)?;
    let members = ["a", "b", "c"].iter().zip(lab.services());
    let members: String = members
        .map(|(name, service)| {
            format!(
                "[[service.member]]\nname = \"{name}\"\nweight = 2\nendpoint = \"{}\"\ninterface = \"{}\"\nbehind = [\"{}\"]\n",
                service.endpoint, service.interface, service.behind
            )
        })
        .collect();
    let services = format!("[[service]]\nname = \"fw-pool\"\nmembers_up = 2\n{members}");
    let tracker = Tracker::start(&lab.hub, config(&services, "web = true"))?;
    tracker.wait_for("all in use", LATER, |status| {
        status.in_use("fw-pool") == ["a", "b", "c"]
    })?;
    let browser = Browser::start(&lab.hub, 1400, 900)?;
    browser.open(URL)?;
    browser.wait_for("the pool", &row("fw-pool", "up"))?;
    browser.run("document.querySelector('.row .open').click()")?;
    let says = |text: &str| {
        format!(
            "document.getElementById('detail').innerText.replace(/\\s+/g, ' ').includes('{text}')"
        )
    };
    browser.wait_for(
        "the members in use",
        &says("In use: a, b, c; 2 of 3 members must be up."),
    )?;
    lab.services()[0].break_forwarding()?;
    browser.wait_for(
        "a out of use",
        &says("In use: b, c; 2 of 3 members must be up."),
    )?;
    browser.wait_for("a", &says("Member a"))?;
    browser.wait_for(
        "its place among the others",
        &says("down, not in use, priority 0, weight 2"),
    )?;
    lab.services()[1].break_forwarding()?;
    lab.services()[2].break_forwarding()?;
    browser.wait_for("the pool", &row("fw-pool", "down"))?;
    browser.wait_for("none in use", &says("In use: none; 2 of 3"))?;
    quiet(&browser)
}

#[test]
fn the_token_is_asked_for_and_kept_in_memory() -> Result<()> {
    let lab = Lab::new()?;
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("token");
    fs::write(&file, "correct-horse\n")?;
    let api = format!("web = true\ntoken_file = \"{}\"", file.display());
    let tracker = Tracker::start(&lab.hub, config(&lab.service().toml("fw-1"), &api))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    assert_eq!(ask(&lab, "GET", "/", "")?.0, 200);
    assert_eq!(ask(&lab, "GET", "/v1/status", "")?.0, 401);

    let browser = Browser::start(&lab.hub, 1000, 800)?;
    browser.open(URL)?;
    browser.wait_for(
        "the question",
        "!document.getElementById('login').hidden && document.activeElement.id === 'token'",
    )?;
    accessible(&browser, "the question for the token")?;
    browser.press(&format!("wrong{ENTER}"))?;
    browser.wait_for(
        "the refusal",
        "document.getElementById('login-error').textContent !== ''",
    )?;
    assert!(
        !browser.text()?.contains("fw-1"),
        "nothing is shown without the token"
    );
    browser.press(&format!("correct-horse{ENTER}"))?;
    browser.wait_for("the service", &row("fw-1", "up"))?;
    browser.wait_for("the events", "document.querySelector('.entry') !== null")?;
    let kept = browser.run(
        "return JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href, document.documentElement.outerHTML])",
    )?;
    assert!(
        !kept
            .as_str()
            .context("read what is kept")?
            .contains("correct-horse"),
        "{kept}"
    );
    // The browser itself says of each 401 that it was one.
    let said = browser.console()?;
    let others: Vec<_> = said.iter().filter(|said| !said.contains("401")).collect();
    assert!(others.is_empty(), "{others:#?}");

    browser.open(URL)?;
    browser.wait_for(
        "the question again",
        "!document.getElementById('login').hidden",
    )?;
    Ok(())
}

#[test]
fn a_thousand_services_stay_smooth() -> Result<()> {
    const COUNT: usize = 1000;
    let lab = Lab::new()?;
    let service = lab.service();
    // Each tenth service is to fall without the others.
    let other = "10.20.0.10";
    service
        .host
        .ip(&format!("address add {other}/32 dev eth0\n"))?;
    let services: String = (0..COUNT)
        .map(|number| {
            let name = format!("svc-{number:04}");
            match number % 10 {
                0 => service.toml_to(&name, other, ""),
                _ => service.toml(&name),
            }
        })
        .collect();
    let config = config(&services, "web = true")
        .defaults("interval = \"1s\"\ntimeout = \"500ms\"\nfall = 2");
    let tracker = Tracker::start(&lab.hub, &config)?;
    tracker.wait_for("all up", LATER, |status| {
        status.0["services"].as_array().is_some_and(|services| {
            services.len() == COUNT && services.iter().all(|service| service["verdict"] == "up")
        })
    })?;
    let browser = Browser::start(&lab.hub, 1400, 900)?;
    browser.open(URL)?;
    browser.wait_for(
        "all rows",
        &format!("document.querySelectorAll('.row').length === {COUNT}"),
    )?;
    browser.wait_for(
        "the summary",
        "document.getElementById('summary').innerText.includes('1000 up')",
    )?;
    browser.wait_for(
        "figures of rows in view",
        "/s$/.test(document.querySelector('.row .rtt')?.innerText.trim())",
    )?;
    assert_eq!(
        browser.run("return document.querySelectorAll('.row .paths').length < 200")?,
        true,
        "rows that are not in view are not filled"
    );
    browser.run("document.querySelectorAll('.row')[990].scrollIntoView()")?;
    browser.wait_for(
        "the end of the list",
        "/s$/.test(document.querySelectorAll('.row')[990].querySelector('.rtt')?.innerText.trim())",
    )?;
    browser.run("const search = document.getElementById('search'); search.value = 'svc-0777'; search.dispatchEvent(new Event('input'))")?;
    browser.wait_for(
        "the one",
        "[...document.querySelectorAll('.row')].filter(row => !row.hidden).length === 1",
    )?;
    browser.run("const search = document.getElementById('search'); search.value = ''; search.dispatchEvent(new Event('input'))")?;
    browser.run("scrollTo(0, 0)")?;

    // Each row says what the summary counts, and the rows stand in order: those that are down first.
    let settled = |down: usize| {
        format!(
            "(rows => rows.length === {COUNT} && rows.filter(({{dataset}}) => dataset.verdict === 'down').length === {down} \
             && rows.every(row => row.querySelector('.verdict').textContent === row.dataset.verdict) \
             && rows.every((row, at) => at === 0 || (is_down => is_down(rows[at - 1]) - is_down(row) || row.row.at - rows[at - 1].row.at) \
             (({{dataset}}) => Number(dataset.verdict === 'down')) > 0) \
             && document.getElementById('summary').textContent.includes('{down} down'))([...document.querySelectorAll('.row')])"
        )
    };
    browser.wait_for("the order", &settled(0))?;
    browser.run("document.querySelectorAll('.row')[500].querySelector('.open').focus()")?;
    // Looks of this test at the page are tasks too: none while the page follows.
    let follow = || tracker_lab::pace::pause(Duration::from_secs(4));
    browser.run("window.begun = performance.now()")?;
    service.block(other)?;
    follow();
    browser.wait_for("a tenth down", &settled(COUNT / 10))?;
    assert_eq!(
        browser.run("return document.activeElement.textContent")?,
        "svc-0500",
        "a row that was moved keeps the focus"
    );
    service.mend()?;
    follow();
    browser.wait_for("all up again", &settled(0))?;
    service.break_forwarding()?;
    follow();
    browser.wait_for("all down", &settled(COUNT))?;
    browser.wait_for(
        "bursts, not a thousand entries",
        "document.querySelectorAll('.entry').length < 20 && /\\d+ services/.test(document.querySelector('.entry').innerText)",
    )?;
    // Tasks that only lay out and paint are no `longtask`: what is counted is frames, from their first task until they are drawn.
    let figures = browser.run(
        "const of = name => performance.getEntriesByName(name).map(({duration}) => duration).sort((a, b) => a - b);
         const text = name => { const all = of(name); return `${name} ${all.at(all.length >> 1)?.toFixed(1)} ms, at most ${all.at(-1)?.toFixed(1)} ms`; };
         const paint = performance.getEntriesByName('first-contentful-paint')[0];
         return new Promise(resolve => {
           new PerformanceObserver(list => resolve(list.getEntries().filter(({startTime}) => startTime > begun))).observe({type: 'long-animation-frame', buffered: true});
           setTimeout(resolve, 500, []);
         }).then(frames => `first paint ${paint?.startTime.toFixed(0)} ms, ${text('update')}, ${text('figures')}, ${text('rows')}, \
         ${frames.length} frames of 50 ms or more, at most ${Math.max(0, ...frames.map(({duration}) => duration)).toFixed(0)} ms`);",
    )?;
    eprintln!(
        "web, {COUNT} services: {}",
        figures.as_str().unwrap_or_default()
    );
    quiet(&browser)
}

/// Writes the pictures of the documentation, if they are wanted.
#[test]
fn pictures_of_the_documentation() -> Result<()> {
    let Some(directory) = env::var_os(PICTURES) else {
        return Ok(());
    };
    let lab = Lab::with_services(5)?;
    let names = ["fw-1", "ids", "waf", "lb-eu", "vpn"];
    let mut services: String = lab
        .services()
        .iter()
        .zip(names)
        .map(|(service, name)| service.toml(name))
        .collect();
    for (name, of) in [
        ("internet", ["fw-1", "ids", "waf"]),
        ("cloud", ["fw-1", "lb-eu", "vpn"]),
    ] {
        services += &format!("[[chain]]\nname = \"{name}\"\nservices = {of:?}\n");
    }
    let config =
        config(&services, "web = true").defaults("interval = \"200ms\"\ntimeout = \"200ms\"");
    let tracker = Tracker::start(&lab.hub, &config)?;
    for name in names {
        tracker.wait_verdict(name, "up", "replied")?;
    }
    tracker.service("set vpn --state maintenance --reason upgrade --for 2h")?;
    let browser = Browser::start(&lab.hub, 1400, 960)?;
    browser.open(URL)?;
    browser.wait_for("the list", &row("waf", "up"))?;
    browser.run("[...document.querySelectorAll('.open')].find(({textContent}) => textContent === 'ids').click()")?;
    // The charts are to have something to show.
    tracker_lab::pace::pause(Duration::from_secs(20));
    lab.services()[1].break_forwarding()?;
    browser.wait_for("down", &row("ids", "down"))?;
    tracker_lab::pace::pause(Duration::from_secs(8));
    for theme in ["light", "dark"] {
        browser.run(&format!(
            "document.documentElement.dataset.theme = '{theme}'"
        ))?;
        tracker_lab::pace::pause(Duration::from_secs(1));
        let path = Path::new(&directory).join(format!("web-{theme}.png"));
        fs::write(&path, browser.picture()?)
            .with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}
