package org.mizzle.bridge;

import io.netty.channel.ChannelFutureListener;
import java.io.Closeable;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.List;
import java.util.function.Consumer;
import org.apache.spark.SparkConf;
import org.apache.spark.SparkEnv;
import org.apache.spark.network.TransportContext;
import org.apache.spark.network.buffer.ManagedBuffer;
import org.apache.spark.network.client.ChunkReceivedCallback;
import org.apache.spark.network.client.RpcResponseCallback;
import org.apache.spark.network.client.StreamCallback;
import org.apache.spark.network.client.TransportClient;
import org.apache.spark.network.client.TransportClientBootstrap;
import org.apache.spark.network.client.TransportClientFactory;
import org.apache.spark.network.crypto.AuthClientBootstrap;
import org.apache.spark.network.netty.SparkTransportConf;
import org.apache.spark.network.server.NoOpRpcHandler;
import org.apache.spark.network.server.OneForOneStreamManager;
import org.apache.spark.network.shuffle.protocol.BlockTransferMessage;
import org.apache.spark.network.shuffle.protocol.OpenBlocks;
import org.apache.spark.network.shuffle.protocol.StreamHandle;
import org.apache.spark.network.util.TransportConf;
import scala.Option;

/**
 * Asynchronous calls to the block transfer service of other executors: Spark's port, authentication
 * and encryption, but not its retries and unbounded waits. Callbacks run on network threads of this
 * class' own client and must not block.
 */
class Peers implements Closeable {
  private final SparkEnv env;
  private String appId;
  private TransportContext context;
  private TransportClientFactory factory;

  Peers(SparkEnv env) {
    this(env, null);
  }

  /** {@code appId}: null until there is a connection. */
  Peers(SparkEnv env, String appId) {
    this.env = env;
    this.appId = appId;
  }

  /** Not in the constructor: in local mode plugins start before the application has an id. */
  private synchronized TransportClientFactory factory() {
    if (factory != null) {
      return factory;
    }
    SparkConf conf = env.conf().clone();
    // A peer that does not accept at once is dead or cut off; Spark's default is two minutes.
    conf.set("spark.shuffle.io.connectionCreationTimeout", "3s");
    appId = conf.getAppId();
    TransportConf transport = SparkTransportConf.fromSparkConf(conf, "shuffle", 2, Option.empty(),
        Option.apply(env.securityManager().getRpcSSLOptions()));
    context = new TransportContext(transport, new NoOpRpcHandler(), false, true);
    List<TransportClientBootstrap> bootstraps = new ArrayList<>();
    bootstraps.add((client, channel) -> Intake.install(channel));
    if (env.securityManager().isAuthenticationEnabled()) {
      bootstraps.add(new AuthClientBootstrap(transport, appId, env.securityManager()));
    }
    factory = context.createClientFactory(bootstraps);
    return factory;
  }

  /** A new connection to a peer's block service; blocks for at most a few seconds. */
  TransportClient connect(String host, int port) throws IOException, InterruptedException {
    return factory().createUnmanagedClient(host, port);
  }

  /**
   * Runs {@code gone} when the connection ends, for whatever reason; at once if it has ended.
   *
   * @return undoes it: who leaves in peace closes the connection itself
   */
  static Runnable onClose(TransportClient client, Runnable gone) {
    ChannelFutureListener listener = future -> gone.run();
    client.getChannel().closeFuture().addListener(listener);
    return () -> client.getChannel().closeFuture().removeListener(listener);
  }

  /** Opens blocks of the executor at the other end. */
  Chunks.Opener opener(TransportClient client, String executorId) {
    return (names, opened, failed) -> open(client, executorId, names, failed, opened);
  }

  /** Rings a bell that is rung once; {@code failed} is called if it may not have been heard. */
  void ring(TransportClient client, String executorId, String bell, Consumer<Throwable> failed) {
    open(client, executorId, new String[] {bell}, failed, stream -> client.fetchChunk(stream, 0,
        new ChunkReceivedCallback() {
          @Override
          public void onSuccess(int chunk, ManagedBuffer buffer) {
            // The answer carries nothing: that it was read is the message.
          }

          @Override
          public void onFailure(int chunk, Throwable error) {
            failed.accept(error);
          }
        }));
  }

  /** Streams a block to {@code sink}; {@code failed} tells that it could not even be opened. */
  void fetch(TransportClient client, String executorId, String name, StreamCallback sink,
      Consumer<Throwable> failed) {
    open(client, executorId, new String[] {name}, failed, stream -> client.stream(
        OneForOneStreamManager.genStreamChunkId(stream, 0), sink));
  }

  private void open(TransportClient client, String executorId, String[] names,
      Consumer<Throwable> failed, Chunks.StreamOpened opened) {
    ByteBuffer request = new OpenBlocks(appId, executorId, names).toByteBuffer();
    client.sendRpc(request, new RpcResponseCallback() {
      @Override
      public void onSuccess(ByteBuffer response) {
        long stream;
        try {
          BlockTransferMessage message = BlockTransferMessage.Decoder.fromByteBuffer(response);
          stream = ((StreamHandle) message).streamId;
        } catch (RuntimeException e) {
          failed.accept(e);
          return;
        }
        opened.accept(stream);
      }

      @Override
      public void onFailure(Throwable error) {
        failed.accept(error);
      }
    });
  }

  @Override
  public synchronized void close() {
    if (factory != null) {
      factory.close();
      context.close();
    }
  }
}
