//! A browser, by the few commands of WebDriver (W3C) that the tests need.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Longest wait for the page to become what it should be.
const PATIENCE: Duration = Duration::from_secs(120);
/// So often Chromium is started for a page.
const STARTS: usize = 5;
/// Time between two looks.
const LOOK: Duration = Duration::from_millis(20);
/// The member that holds an element's id in every answer (W3C WebDriver, 12).
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// Keys without a character (W3C WebDriver, 17.4.2).
pub(crate) const ENTER: char = '\u{E007}';
pub(crate) const SHIFT: char = '\u{E008}';
pub(crate) const ESCAPE: char = '\u{E00C}';

/// A browser with one page, gone when dropped.
pub(crate) struct Browser {
    driver: Child,
    address: SocketAddr,
    session: String,
    _profile: tempfile::TempDir,
}

impl Browser {
    /// Opens an address, or says that there is no browser on this machine.
    pub(crate) fn open(address: SocketAddr) -> Option<Browser> {
        let (Some(driver), Some(chromium)) = (
            find(&["chromedriver"]),
            find(&["chromium", "chromium-browser", "google-chrome"]),
        ) else {
            ds4_conformance::golden::skipped("the page: no chromedriver with a Chromium is here");
            return None;
        };
        let mut driver = Command::new(driver)
            .arg("--port=0")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromedriver starts");
        let port = port_of(&mut driver);
        let profile = tempfile::tempdir().expect("a temporary folder");
        let mut browser = Browser {
            driver,
            address: (Ipv4Addr::LOCALHOST, port).into(),
            session: String::new(),
            _profile: profile,
        };
        let data_dir = format!("--user-data-dir={}", browser._profile.path().display());
        let patience_ms = PATIENCE.as_millis() as u64;
        let capabilities = json!({"alwaysMatch": {
            "timeouts": {"script": patience_ms, "pageLoad": patience_ms},
            "goog:chromeOptions": {
                "binary": chromium,
                "args": [
                    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
                    "--no-first-run", "--disable-background-networking",
                    "--disable-component-update", "--disable-sync", data_dir,
                ],
            },
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }});
        let request = json!({"capabilities": capabilities});
        // A Chromium that a busy machine does not let start within a minute is started again.
        let mut n_tries = 0;
        browser.session = loop {
            n_tries += 1;
            let answer = browser.exchange("POST", "/session", &request);
            match answer.as_ref().map(|a| a["value"]["sessionId"].as_str()) {
                Ok(Some(session)) => break session.to_owned(),
                _ => assert!(n_tries < STARTS, "Chromium does not start: {answer:#?}"),
            }
        };
        browser.command("url", &json!({"url": format!("http://{address}/")}));
        Some(browser)
    }

    /// Loads the page again, and waits until it is there.
    #[track_caller]
    pub(crate) fn reload(&self) {
        self.run("window.isOld = true; location.reload()");
        let until = Instant::now() + PATIENCE;
        let is_there = "return !window.isOld && document.readyState === 'complete' \
                        && document.getElementById('host')?.textContent === location.host";
        while self.run(is_there) != true {
            assert!(Instant::now() < until, "the page does not come back");
            std::thread::sleep(LOOK);
        }
    }

    /// Makes the window so large, in pixels of the page, light or dark.
    #[track_caller]
    pub(crate) fn look(&self, width: u32, height: u32, scheme: &str) {
        for (cmd, params) in [
            (
                "Emulation.setDeviceMetricsOverride",
                json!({"width": width, "height": height, "deviceScaleFactor": 1,
                       "mobile": width < 500}),
            ),
            (
                "Emulation.setEmulatedMedia",
                json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]}),
            ),
        ] {
            self.command("goog/cdp/execute", &json!({"cmd": cmd, "params": params}));
        }
    }

    /// Runs the body of a function whose last argument is called with the result.
    #[track_caller]
    pub(crate) fn run_async(&self, script: &str) -> Value {
        self.command("execute/async", &json!({"script": script, "args": []}))
    }

    /// Runs the body of a function in the page; what it returns.
    #[track_caller]
    pub(crate) fn run(&self, script: &str) -> Value {
        self.command("execute/sync", &json!({"script": script, "args": []}))
    }

    /// Waits until an expression is true.
    #[track_caller]
    pub(crate) fn wait(&self, expression: &str) {
        let until = Instant::now() + PATIENCE;
        while self.run(&format!("return Boolean({expression})")) != true {
            if Instant::now() > until {
                let page = self.run("return document.body.innerText");
                panic!("{expression} does not become true; the page says:\n{page}");
            }
            std::thread::sleep(LOOK);
        }
    }

    /// The text of the last element of a selector.
    #[track_caller]
    pub(crate) fn text(&self, css: &str) -> String {
        let text = self.run(&format!(
            "return [...document.querySelectorAll({css:?})].at(-1)?.textContent"
        ));
        let text = text.as_str();
        text.unwrap_or_else(|| panic!("nothing is {css}"))
            .to_owned()
    }

    /// Clicks where a person would; the element must be in sight.
    #[track_caller]
    pub(crate) fn click(&self, css: &str) {
        let id = self.element(css);
        self.command(&format!("element/{id}/click"), &json!({}));
    }

    /// Types into a field, key by key.
    #[track_caller]
    pub(crate) fn type_into(&self, css: &str, text: &str) {
        let id = self.element(css);
        self.command(&format!("element/{id}/value"), &json!({"text": text}));
    }

    /// Writes a message and sends it.
    #[track_caller]
    pub(crate) fn send(&self, message: &str) {
        self.type_into("#message", &format!("{message}{ENTER}"));
    }

    /// Waits until the last reply is over and its numbers are there.
    #[track_caller]
    pub(crate) fn wait_for_reply(&self, n_replies: usize) {
        self.wait(&format!(
            "document.querySelectorAll('.reply').length === {n_replies} \
             && !document.querySelector('.reply[aria-busy]')"
        ));
    }

    /// Entries of a log since it was last read.
    #[track_caller]
    pub(crate) fn log(&self, kind: &str) -> Vec<Value> {
        let entries = self.command("se/log", &json!({"type": kind}));
        entries.as_array().expect("a list").clone()
    }

    #[track_caller]
    fn element(&self, css: &str) -> String {
        let found = self.command("element", &json!({"using": "css selector", "value": css}));
        found[ELEMENT].as_str().expect("an element").to_owned()
    }

    #[track_caller]
    fn command(&self, name: &str, body: &Value) -> Value {
        self.ask("POST", &format!("/session/{}/{name}", self.session), body)
    }

    /// One request to the driver; the value of its answer.
    #[track_caller]
    fn ask(&self, method: &str, path: &str, body: &Value) -> Value {
        let mut answer = self.exchange(method, path, body).expect("an answer");
        let value = answer["value"].take();
        assert!(value.get("error").is_none(), "{path} {body}: {value:#}");
        value
    }

    fn exchange(&self, method: &str, path: &str, body: &Value) -> io::Result<Value> {
        let body = body.to_string();
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            self.address,
            body.len(),
        );
        stream.write_all(request.as_bytes())?;
        Ok(serde_json::from_slice(&body_of(stream)?)?)
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The browser outlives a driver that is killed, and after a failed test it is of no use.
        let _ = self.exchange("DELETE", &format!("/session/{}", self.session), &json!({}));
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

/// The body of an answer, by its length: the driver leaves the connection open.
fn body_of(stream: TcpStream) -> io::Result<Vec<u8>> {
    let mut stream = BufReader::new(stream);
    let mut n_bytes = 0;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        let line = line.trim_end().to_ascii_lowercase();
        if let Some(length) = line.strip_prefix("content-length:") {
            n_bytes = length.trim().parse().expect("a length");
        }
        if line.is_empty() {
            break;
        }
    }
    let mut body = vec![0; n_bytes];
    stream.read_exact(&mut body)?;
    Ok(body)
}

/// The first of some programs that can be run.
fn find(names: &[&str]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let paths = names
        .iter()
        .flat_map(|name| folders.iter().map(move |folder| folder.join(name)));
    paths.into_iter().find(|path| path.is_file())
}

/// The port that a driver took, from the line in which it says so.
fn port_of(driver: &mut Child) -> u16 {
    let mut lines = BufReader::new(driver.stdout.take().expect("a pipe")).lines();
    let port = lines.by_ref().find_map(|line| {
        let line = line.expect("text");
        let (_, port) = line.split_once("started successfully on port ")?;
        port.trim_end_matches('.').parse().ok()
    });
    // It must not be stopped by a full pipe.
    std::thread::spawn(move || lines.for_each(drop));
    port.expect("chromedriver says its port")
}
