package org.mizzle.bridge;

import io.netty.channel.Channel;
import io.netty.channel.EventLoop;
import io.netty.channel.embedded.EmbeddedChannel;
import java.lang.reflect.InvocationHandler;
import java.lang.reflect.Proxy;
import java.nio.ByteBuffer;
import java.util.EnumSet;
import java.util.Set;
import java.util.concurrent.RejectedExecutionException;
import org.apache.spark.network.client.ChunkReceivedCallback;
import org.apache.spark.network.client.RpcResponseCallback;
import org.apache.spark.network.client.StreamCallback;
import org.apache.spark.network.client.TransportClient;
import org.apache.spark.network.client.TransportResponseHandler;
import org.apache.spark.network.shuffle.protocol.StreamHandle;

/** A connection to a peer that does as it is told with every asynchronous call that there is. */
final class FaultyClient extends TransportClient {
  /** The calls. */
  enum Call { SEND_RPC, FETCH_CHUNK, STREAM }

  /** What becomes of one that does not go well. */
  enum How { THROWS, FAILS, ANSWERS_NONSENSE }

  /** Those that do not go well. */
  final Set<Call> broken = EnumSet.noneOf(Call.class);
  How how = How.THROWS;
  /** Whether its event loop takes no more work. */
  boolean refuses;

  private final EmbeddedChannel channel;

  FaultyClient(EmbeddedChannel channel) {
    super(channel, new TransportResponseHandler(channel));
    this.channel = channel;
    Intake.install(channel);
  }

  static FaultyClient make() {
    return new FaultyClient(new EmbeddedChannel());
  }

  EmbeddedChannel channel() {
    return channel;
  }

  /** The channel, on an event loop that does at once what it is given, or refuses it. */
  @Override
  public Channel getChannel() {
    EventLoop loop = as(EventLoop.class, (proxy, method, arguments) -> switch (method.getName()) {
      case "inEventLoop" -> false;
      case "execute" -> execute((Runnable) arguments[0]);
      default -> throw new UnsupportedOperationException(method.getName());
    });
    return as(Channel.class, (proxy, method, arguments) -> method.getName().equals("eventLoop")
        ? loop : method.invoke(channel, arguments));
  }

  private static <T> T as(Class<T> type, InvocationHandler how) {
    return type.cast(Proxy.newProxyInstance(type.getClassLoader(), new Class<?>[] {type}, how));
  }

  private Object execute(Runnable task) {
    if (refuses) {
      throw new RejectedExecutionException("the event loop is shut down");
    }
    task.run();
    return null;
  }

  private boolean isBroken(Call call) {
    if (broken.contains(call) && how == How.THROWS) {
      throw new IllegalStateException(call + " is broken");
    }
    return broken.contains(call);
  }

  @Override
  public long sendRpc(ByteBuffer message, RpcResponseCallback callback) {
    if (!isBroken(Call.SEND_RPC)) {
      callback.onSuccess(new StreamHandle(7, 64).toByteBuffer());
    } else if (how == How.FAILS) {
      callback.onFailure(new IllegalStateException("SEND_RPC failed"));
    } else {
      callback.onSuccess(ByteBuffer.allocate(1));
    }
    return 1;
  }

  @Override
  public void fetchChunk(long stream, int chunk, ChunkReceivedCallback callback) {
    if (isBroken(Call.FETCH_CHUNK)) {
      callback.onFailure(chunk, new IllegalStateException("FETCH_CHUNK failed"));
    } else {
      callback.onSuccess(chunk, null);
    }
  }

  @Override
  public void stream(String name, StreamCallback callback) {
    if (isBroken(Call.STREAM)) {
      try {
        callback.onFailure(name, new IllegalStateException("STREAM failed"));
      } catch (java.io.IOException e) {
        throw new java.io.UncheckedIOException(e);
      }
    }
  }
}
