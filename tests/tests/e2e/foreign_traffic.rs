//! Traffic that is not Tracker's passes the hub's interface untouched.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use tracker_lab::daemon::SOON;
use tracker_lab::pace::slow;
use tracker_lab::{Lab, Namespace, Tracker};

/// A lab whose hub can also reach the host, under all its addresses, by ordinary routing.
fn busy_lab() -> Result<Lab> {
    let lab = Lab::new()?;
    lab.hub
        .ip("route add 10.20.0.0/24 via 10.9.0.2\nroute add 10.30.0.0/24 via 10.9.0.2\n")?;
    Ok(lab)
}

fn start(lab: &Lab) -> Result<Tracker<'_>> {
    let tracker = Tracker::start(&lab.hub, &lab.service().toml("fw-1"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    Ok(tracker)
}

/// Five megabytes in which every byte depends on its place.
fn pattern() -> Vec<u8> {
    (0..5_000_000u32)
        .map(|place| (place.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect()
}

fn transfer(server: &Namespace, address: Ipv4Addr, client: &Namespace) -> Result<()> {
    let listener = server.enter(|| Ok(TcpListener::bind((address, 0))?))?;
    let port = listener.local_addr()?.port();
    let receiver = thread::spawn(move || -> Result<Vec<u8>> {
        let (mut stream, _) = listener.accept()?;
        let mut received = Vec::new();
        stream.read_to_end(&mut received)?;
        Ok(received)
    });
    let sent = pattern();
    client.enter(|| {
        let peer = SocketAddr::from((address, port));
        let mut stream = TcpStream::connect_timeout(&peer, slow(SOON))?;
        stream.set_write_timeout(Some(slow(SOON)))?;
        stream.write_all(&sent).context("send")
    })?;
    let received = receiver
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    assert!(
        received == sent,
        "{} of {} bytes",
        received.len(),
        sent.len()
    );
    Ok(())
}

#[test]
fn tcp_transfers_in_both_directions() -> Result<()> {
    let lab = busy_lab()?;
    let service = lab.service();
    let tracker = start(&lab)?;
    transfer(&service.host, service.behind, &lab.hub)?;
    transfer(&lab.hub, service.hub_address, &service.host)?;
    tracker.wait_alive(SOON, "fw-1")?;
    assert_eq!(tracker.history("fw-1")?.len(), 1);
    Ok(())
}

#[test]
fn udp_datagrams_arrive_as_they_were() -> Result<()> {
    let lab = busy_lab()?;
    let service = lab.service();
    let _tracker = start(&lab)?;
    let echo = service
        .host
        .enter(|| Ok(UdpSocket::bind((service.behind, 7))?))?;
    echo.set_read_timeout(Some(slow(SOON)))?;
    let server = thread::spawn(move || -> Result<()> {
        let mut buffer = [0; 2048];
        for _ in 0..100 {
            let (length, from) = echo.recv_from(&mut buffer)?;
            echo.send_to(&buffer[..length], from)?;
        }
        Ok(())
    });
    lab.hub.enter(|| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(slow(Duration::from_secs(2))))?;
        let mut buffer = [0; 2048];
        for number in 0..100_usize {
            let datagram: Vec<u8> = (0..number * 14)
                .map(|place| (place ^ number) as u8)
                .collect();
            socket.send_to(&datagram, (service.behind, 7))?;
            let length = socket
                .recv(&mut buffer)
                .with_context(|| format!("datagram {number}"))?;
            assert_eq!(&buffer[..length], datagram);
        }
        Ok(())
    })?;
    server
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

#[test]
fn ordinary_pings_get_their_replies() -> Result<()> {
    let lab = busy_lab()?;
    let service = lab.service();
    let tracker = start(&lab)?;
    let patience = slow(Duration::from_secs(2)).as_secs();
    // The endpoint, the tracked address itself, in fragments too, and the hub from outside.
    for (from, to, size) in [
        (&lab.hub, service.endpoint, 56),
        (&lab.hub, service.behind, 56),
        (&lab.hub, service.behind, 0),
        (&lab.hub, service.behind, 1472),
        (&lab.hub, service.endpoint, 4000),
        (&lab.hub, service.behind, 4000),
        (&service.host, service.hub_address, 56),
        (&service.host, service.hub_address, 4000),
    ] {
        let output = from.run(&format!(
            "ping -n -c 20 -i 0.01 -w {patience} -s {size} {to}"
        ))?;
        // More are sent while one is late, so that only packets without any answer fail the test.
        assert!(output.contains(" 20 received"), "{output}");
        assert!(
            !output.contains("DUP") && !output.contains("wrong data"),
            "{output}"
        );
    }
    assert_eq!(tracker.status()?.count("fw-1", "duplicate"), 0);
    assert_eq!(tracker.history("fw-1")?.len(), 1);
    Ok(())
}

#[test]
fn other_icmp_errors_reach_the_hub() -> Result<()> {
    let lab = busy_lab()?;
    let _tracker = start(&lab)?;
    // The port is closed: the host's port-unreachable must come through to the socket.
    lab.hub.enter(|| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(slow(Duration::from_secs(2))))?;
        socket.connect((lab.service().behind, 9))?;
        socket.send(b"anyone?")?;
        let error = socket.recv(&mut [0; 16]).map(drop);
        let kind = error.err().context("wait for an error")?.kind();
        assert_eq!(kind, std::io::ErrorKind::ConnectionRefused);
        Ok(())
    })
}
