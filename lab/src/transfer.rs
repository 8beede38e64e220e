//! Traffic of others through the hub's interface, which must not lose a packet.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};

use crate::daemon::SOON;
use crate::topology::Lab;

/// Does `work` while a connection from the hub to the host behind the service is in use. No byte may be lost, nor be needed
/// again.
///
/// # Errors
/// Those of `work`, and if the connection was harmed.
pub fn unharmed_by<T>(lab: &Lab, work: impl FnOnce() -> Result<T>) -> Result<T> {
    lab.hub.ip("route replace 10.30.0.0/24 via 10.9.0.2\n")?;
    let address = SocketAddr::from(([10, 30, 0, 2], 5001));
    let host = &lab.service().host;
    let listener = host.enter(|| TcpListener::bind(address).context("listen on the host"))?;
    let connect = || TcpStream::connect(address).context("connect from the hub");
    let mut stream = lab.hub.enter(connect)?;
    stream.set_read_timeout(Some(SOON))?;
    let (mut server, _) = listener.accept()?;
    let stop = AtomicBool::new(false);
    let done = thread::scope(|scope| -> Result<T> {
        let sending = scope.spawn(|| -> Result<u64> {
            let mut sent = 0;
            while !stop.load(Ordering::Relaxed) {
                server.write_all(&[0x5a; 1000])?;
                sent += 1000;
                sleep(Duration::from_micros(500));
            }
            server.shutdown(std::net::Shutdown::Write)?;
            Ok(sent)
        });
        let receiving = scope.spawn(move || -> Result<u64> {
            let mut buffer = [0; 65_536];
            let mut received = 0;
            loop {
                let count = stream.read(&mut buffer)?;
                if count == 0 {
                    return Ok(received);
                }
                ensure!(buffer[..count].iter().all(|byte| *byte == 0x5a));
                received += count as u64;
            }
        });
        let done = work();
        stop.store(true, Ordering::Relaxed);
        let join = |thread: thread::ScopedJoinHandle<'_, Result<u64>>| {
            thread.join().map_err(|_| anyhow!("a thread panicked"))?
        };
        let (sent, received) = (join(sending)?, join(receiving)?);
        ensure!(
            sent == received && sent > 100_000,
            "sent {sent} bytes, received {received}"
        );
        done
    })?;
    let counted = host.run("nstat -asz TcpRetransSegs")?;
    let count = counted
        .lines()
        .find_map(|line| line.strip_prefix("TcpRetransSegs"))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
    ensure!(count == Some(0.0), "sent again: {counted}");
    Ok(done)
}
