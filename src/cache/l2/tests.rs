use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};

use super::*;
use crate::cache::voids::Voids;
use crate::cache::watermark::Watermark;
use crate::entity::{Definition, Entity, Generation, Shape};
use crate::void::tag::Cell;

/// A server that has nothing but fences: each connection's is the next one, and is told when it is let.
struct Fences {
    port: u16,
    /// Who has asked.
    asked: mpsc::UnboundedReceiver<usize>,
    /// So many may be told.
    told: Arc<Semaphore>,
}

impl Fences {
    async fn start(fences: Vec<Vec<(&'static str, String)>>) -> Fences {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (tell, asked) = mpsc::unbounded_channel();
        let told = Arc::new(Semaphore::new(0));
        let may_tell = told.clone();
        tokio::spawn(async move {
            for (number, fence) in fences.into_iter().enumerate() {
                let (stream, _) = listener.accept().await.unwrap();
                let (tell, may_tell) = (tell.clone(), may_tell.clone());
                tokio::spawn(async move {
                    // An error: the client is gone.
                    let _ = serve(stream, number, fence, tell, may_tell).await;
                });
            }
        });
        Fences { port, asked, told }
    }

    /// Whoever reads them: L2, its one entity, and the hierarchy.
    fn reader(&self) -> (Arc<L2>, Arc<Entity>, Arc<Hierarchy>) {
        let config = Config {
            url: format!("redis://127.0.0.1:{}", self.port),
            prefix: String::new(),
            response_timeout: SECOND,
            connect_timeout: SECOND,
            lease_ttl: SECOND,
            lease_wait: SECOND,
        };
        let l2 = Arc::new(L2::new(config).unwrap());
        let entity = Arc::new(Entity::new(0, Definition::rows("item", "public", "items"), "", Shape::unknown(0)));
        let (watermark, voids) = (Watermark::default(), Voids::new(1));
        let entities = vec![entity.clone()];
        let hierarchy = Hierarchy { entities, l1: None, l2: Some(l2.clone()), watermark, voids };
        (l2, entity, Arc::new(hierarchy))
    }
}

/// Long enough for anything here.
const SECOND: Duration = Duration::from_secs(10);

/// Answers commands, arrays of bulk strings, one after the other.
async fn serve(
    mut stream: TcpStream,
    number: usize,
    fence: Vec<(&'static str, String)>,
    tell: mpsc::UnboundedSender<usize>,
    may_tell: Arc<Semaphore>,
) -> std::io::Result<()> {
    let mut received = Vec::new();
    loop {
        while let Some((command, length)) = command(&received) {
            received.drain(..length);
            if command != "HGETALL" {
                stream.write_all(b"+OK\r\n").await?;
                continue;
            }
            let _ = tell.send(number);
            may_tell.acquire().await.unwrap().forget();
            let mut answer = format!("*{}\r\n", fence.len() * 2);
            for text in fence.iter().flat_map(|(field, value)| [*field, value.as_str()]) {
                answer += &format!("${}\r\n{text}\r\n", text.len());
            }
            stream.write_all(answer.as_bytes()).await?;
        }
        if stream.read_buf(&mut received).await? == 0 {
            return Ok(());
        }
    }
}

/// The name of the first command, and how long it is, if it is whole.
fn command(received: &[u8]) -> Option<(String, usize)> {
    let text = std::str::from_utf8(received).unwrap();
    let mut lines = text.split_inclusive("\r\n").take_while(|line| line.ends_with("\r\n"));
    let head = lines.next()?;
    let parts: usize = head.trim_end().strip_prefix('*').unwrap().parse().unwrap();
    // Each is a length and a text, in which no line ends.
    let rest: Vec<&str> = lines.take(2 * parts).collect();
    let length = head.len() + rest.iter().map(|line| line.len()).sum::<usize>();
    (rest.len() == 2 * parts).then(|| (rest[1].trim_end().to_uppercase(), length))
}

fn fence(epoch: u64, done: u64, more: &[(&'static str, u64)]) -> Vec<(&'static str, String)> {
    let number = |n: u64| String::from_utf8(Lsn::from_u64(n).hex16().to_vec()).unwrap();
    let fields = [("epoch", epoch), ("hw", done), ("done", done)];
    fields.iter().chain(more).map(|(field, n)| (*field, number(*n))).collect()
}

/// What a fence says was read before another claim has started over, where LSNs are smaller: it would raise floors, and
/// generations, that nothing reaches.
#[tokio::test]
async fn a_fence_counts_under_the_claim_under_which_it_was_read() {
    let before = fence(1, 5000, &[("tag:0007", 4000), ("void:item", 4000), ("glob:item:item:1*", 4000), ("gen", 90)]);
    let mut fences = Fences::start(vec![before, fence(2, 10, &[("tag:0008", 5)])]).await;
    let (l2, entity, hierarchy) = fences.reader();
    l2.claimed(1, Lsn::from_u64(5000));
    let stop = CancellationToken::new();
    let metrics = Arc::new(InstanceMetrics::new());
    let kept = tokio::spawn(l2.clone().keep_connected(hierarchy.clone(), metrics, stop.clone()));
    let asked = async |fences: &mut Fences| tokio::time::timeout(SECOND, fences.asked.recv()).await.unwrap();
    assert_eq!(asked(&mut fences).await, Some(0));
    // It is on its way when the source fails over to another timeline.
    l2.distrust();
    hierarchy.restart(Lsn::from_u64(10), Generation(2));
    l2.claimed(2, Lsn::from_u64(10));
    fences.told.add_permits(1);
    assert_eq!(asked(&mut fences).await, Some(1), "it is read anew");
    assert!(!l2.is_trusted());
    let cell = |index| Cell::at(index).unwrap();
    assert_eq!(hierarchy.voids.tag_floor(&[cell(7)]), Lsn::ZERO);
    assert_eq!(hierarchy.voids.floor(&entity, "item:2"), Lsn::ZERO);
    assert_eq!((hierarchy.voids.active(), entity.generation()), (0, Generation(2)));
    fences.told.add_permits(1);
    tokio::time::timeout(SECOND, async {
        while !l2.is_trusted() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    assert_eq!(hierarchy.voids.tag_floor(&[cell(7)]), Lsn::ZERO);
    assert_eq!(
        hierarchy.voids.tag_floor(&[cell(8)]),
        Lsn::from_u64(5),
        "what it says now is loaded before it is trusted"
    );
    stop.cancel();
    kept.await.unwrap();
}

/// Another instance has claimed it since: what it has started generations for is not known here.
#[tokio::test]
async fn a_fence_of_another_instance_is_not_trusted() {
    let theirs = || fence(2, 5000, &[("gen:item", 2)]);
    let mut fences = Fences::start(vec![theirs(), theirs(), fence(3, 5000, &[])]).await;
    let (l2, entity, hierarchy) = fences.reader();
    l2.claimed(1, Lsn::from_u64(4000));
    let stop = CancellationToken::new();
    let metrics = Arc::new(InstanceMetrics::new());
    let kept = tokio::spawn(l2.clone().keep_connected(hierarchy, metrics, stop.clone()));
    fences.told.add_permits(1);
    for connection in [0, 1] {
        let asked = tokio::time::timeout(SECOND, fences.asked.recv()).await.unwrap();
        assert_eq!(asked, Some(connection), "it is asked again, as it was not believed");
    }
    assert!(!l2.is_trusted());
    assert_eq!(entity.generation(), Generation(0));
    l2.claimed(3, Lsn::from_u64(5000));
    fences.told.add_permits(2);
    tokio::time::timeout(SECOND, async {
        while !l2.is_trusted() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    stop.cancel();
    kept.await.unwrap();
}
