"""Seconds of an all-reduce by libtorch's Gloo between processes on loopback."""
import argparse, json, os, socket, time
import torch, torch.distributed as dist, torch.multiprocessing as mp

p = argparse.ArgumentParser()
p.add_argument("--elements", type=int, default=25_000_000); p.add_argument("--ranks", type=int, default=3); p.add_argument("--rounds", type=int, default=5)

def member(rank, a, port, out):
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=a.ranks)
    x = torch.ones(a.elements); times = []
    for i in range(a.rounds + 1):
        x.fill_(1.0); dist.barrier()
        t = time.perf_counter(); dist.all_reduce(x); times.append(time.perf_counter() - t)
    assert bool((x == a.ranks).all())
    out.put(times[1:]); dist.barrier(); dist.destroy_process_group()

if __name__ == "__main__":
    a = p.parse_args()
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); port = s.getsockname()[1]
    ctx = mp.get_context("spawn"); out = ctx.Queue()
    ps = [ctx.Process(target=member, args=(r, a, port, out)) for r in range(a.ranks)]
    [q.start() for q in ps]; all_times = [out.get() for _ in ps]; [q.join() for q in ps]
    rounds = [max(t) for t in zip(*all_times)]
    print(json.dumps(dict(peer="gloo, torch " + torch.__version__, elements=a.elements, ranks=a.ranks, rounds=rounds,
                          seconds=sorted(rounds)[len(rounds) // 2])))
