# Perl's DBD::Pg: it prepares by the protocol from a statement's second run on, deallocates by SQL, and asks whether a connection lives.
use strict;
use warnings;
use utf8;
use DBI;
use DBD::Pg qw(:async :pg_types);
use Time::HiRes qw(time sleep);

use constant { CLIENTS => 8, POOL_SIZE => 3, SECONDS_PER_CHECK => 60 };
my ($label, $port, @checks);
$| = 1;
binmode STDOUT, ':utf8';

# How often to repeat something: a quarter of it in a quick run.
sub rounds { my $full = shift; return $ENV{DRIVERS_QUICK} ? int(($full + 3) / 4) : $full }
sub is_proxy { return $label eq 'proxy' }

sub open_ {
    my ($more, $at, %attributes) = @_;
    my $dsn = "dbi:Pg:host=127.0.0.1;port=" . ($at // $port) . ";dbname=$ENV{DRIVERS_DATABASE}_$label" . ($more // '');
    return DBI->connect($dsn, 'postgres', $ENV{DRIVERS_PASSWORD}, { RaiseError => 1, PrintError => 0, PrintWarn => 0, AutoCommit => 1, %attributes });
}
sub direct { return open_('', shift // $ENV{DRIVERS_DIRECT_PORT}) }
sub one { my ($dbh, $sql, @values) = @_; return ($dbh->selectrow_array($sql, undef, @values))[0] }

# Makes what every client sees on every node.
sub make {
    my $looker = direct();
    $looker->do("set client_min_messages = error; $_[0]");
    my $lsn = one($looker, 'select pg_current_wal_flush_lsn()');
    for my $at (split /,/, $ENV{DRIVERS_STANDBY_PORTS}) {
        my ($standby, $deadline) = (direct($at), time + 15);
        until (one($standby, "select pg_last_wal_replay_lsn() >= '$lsn'")) { time < $deadline or die "no replay within 15 s\n"; sleep 0.01 }
        $standby->disconnect;
    }
    $looker->disconnect;
}

sub text { my $value = shift; return !defined $value ? 'undef' : ref $value ? '[' . join(',', map { text($_) } @$value) . ']' : substr $value, 0, 200 }
sub same {
    my ($found, $wanted, $what) = @_;
    return if text($found) eq text($wanted);
    die +($what // 'it') . ' is ' . text($found) . ', not ' . text($wanted) . ' (line ' . (caller)[2] . ")\n";
}
sub fails {
    my ($state, $work) = @_;
    my $line = (caller)[2];
    die "no error, instead of $state (line $line)\n" if eval { $work->(); 1 };
    die $@ unless defined $DBI::state;
    die "SQLSTATE $DBI::state, not $state: $@ (line $line)\n" unless $DBI::state eq $state;
}
sub check { push @checks, [@_] }

check 'connects, with settings and options at login' => sub {
    my $dbh = open_(";application_name='drivers perl';options='-c statement_timeout=250'");
    same(one($dbh, 'show application_name'), 'drivers perl');
    fails('57014', sub { $dbh->do('select pg_sleep(10)') });
    same(one($dbh, 'show statement_timeout'), '250ms');
    same($dbh->ping, 1);
    same($dbh->{pg_server_version}, direct()->{pg_server_version});
};

check 'logs in by SCRAM, with and without TLS' => sub {
    return unless is_proxy();
    same(one(open_(";sslmode=$_", $ENV{DRIVERS_SECURE_PORT}), 'select 7'), 7) for 'disable', "verify-full;sslrootcert=$ENV{DRIVERS_CERTIFICATE}";
};

check 'values of many types, prepared by the server and not' => sub {
    my $bytes = join '', map { chr } 0 .. 255;
    for my $prepare (0, 1) {
        my $dbh = open_('', undef, pg_server_prepare => $prepare);
        my %values = (int => -5, bigint => '9223372036854775807', text => "grüße, 世界 'quoted' \\ ? \n", numeric => '12345678901234567890.5',
            jsonb => '{"a": [1, null]}', date => '2024-02-29', bool => 1, 'int[]' => [ 1, 2, -3 ], 'text[]' => [ 'a', 'b,c', '"' ]);
        for my $type (sort keys %values) {
            my $query = $dbh->prepare("select cast(? as $type), cast(? as $type)");
            for (1 .. 4) {
                $query->execute($values{$type}, undef);
                same([ $query->fetchrow_array ], [ $values{$type}, undef ], $type);
            }
        }
        my $query = $dbh->prepare('select ?::bytea, length(?::bytea)');
        $query->bind_param($_, $bytes x 1000, { pg_type => PG_BYTEA }) for 1, 2;
        $query->execute;
        my ($found, $length) = $query->fetchrow_array;
        same($length, 256000);
        $found eq $bytes x 1000 or die "another bytea\n";
    }
};

check 'prepared statements of clients that change servers, and each is deallocated' => sub {
    make('drop table if exists counted; create table counted (client int, n int)');
    my @clients = map { open_('', undef, pg_switch_prepared => 1) } 1 .. CLIENTS;
    # The driver's names are the same in each client, and their texts are not.
    my @own = map { $clients[$_]->prepare("select ?::int * 10 + $_, pg_backend_pid()") } 0 .. CLIENTS - 1;
    my @servers = map { {} } @clients;
    for my $round (1 .. rounds(120)) {
        my @chosen = map { ($round * (1 + $round % 5) + $_) % CLIENTS } 0 .. POOL_SIZE - 1;
        $clients[$_]->begin_work for @chosen;
        for my $c (@chosen) {
            $own[$c]->execute($round);
            my ($n, $pid) = $own[$c]->fetchrow_array;
            same($n, $round * 10 + $c);
            $servers[$c]{$pid} = 1;
            my $insert = $clients[$c]->prepare('insert into counted values (?, ?)');
            $insert->execute($c, $round) for 1 .. 3;
        }
        $clients[$_]->commit for @chosen;
    }
    same(one($clients[0], 'select count(*) from counted'), rounds(120) * POOL_SIZE * 3);
    return unless is_proxy();
    my %all = map { %$_ } @servers;
    keys %all <= POOL_SIZE or die "more servers than the pool has\n";
    CLIENTS / 2 <= grep { keys %$_ > 1 } @servers or die "clients stay on their servers\n";
};

check 'each write is seen by the next read, and standbys answer what is read for long' => sub {
    make('drop table if exists written; create table written (client int, n int)');
    my @clients = map { open_() } 1 .. CLIENTS;
    my @inserts = map { $_->prepare('insert into written values (?, ?)') } @clients;
    my @counts = map { $_->prepare('select count(*) from written where client = ?') } @clients;
    my $count = sub { $counts[ $_[0] ]->execute($_[0]); return ($counts[ $_[0] ]->fetchrow_array)[0] };
    for my $n (1 .. rounds(120)) {
        for my $c (0 .. CLIENTS - 1) {
            $inserts[$c]->execute($c, $n);
            same($count->($c), $n, 'own writes');
        }
    }
    my $enough = time + 1;
    while (time < $enough) { same($count->(3), rounds(120)) }
};

check 'transactions and savepoints, and what an error leaves' => sub {
    make('drop table if exists kept; create table kept (n int primary key)');
    my ($dbh, $looker) = (open_('', undef, AutoCommit => 0), direct());
    $dbh->do('insert into kept values (1)');
    $dbh->pg_savepoint('a');
    my $insert = $dbh->prepare('insert into kept values (?)');
    $insert->execute(2);
    $insert->execute(3);
    fails('23505', sub { $insert->execute(1) });
    fails('25P02', sub { $dbh->do('select 1') });
    # Here the driver deallocates in a block that has failed.
    undef $insert;
    $dbh->pg_rollback_to('a');
    $dbh->pg_release('a');
    same(one($looker, 'select count(*) from kept'), 0);
    $dbh->commit;
    same(one($looker, 'select count(*) from kept'), 1);
    $dbh->do('delete from kept');
    $dbh->rollback;
    same(one($dbh, 'select count(*) from kept'), 1);
    $dbh->commit;
    my %wrong = ('42P01' => 'select * from no_such_table', 22012 => 'select 1/0', 42601 => 'selec');
    for my $state (sort keys %wrong) {
        fails($state, sub { $dbh->do($wrong{$state}) });
        $dbh->rollback;
        same(one($dbh, 'select 1'), 1);
    }
    $dbh->rollback;
    $dbh->{ReadOnly} = 1;
    fails('25006', sub { $dbh->do('insert into kept values (4)') });
    $dbh->rollback;
};

check 'COPY in and out, and large objects' => sub {
    make('drop table if exists copied; create table copied (n int, t text)');
    my ($dbh, $count, $row, @found) = (open_(), rounds(8000));
    $dbh->do('copy copied from stdin');
    $dbh->pg_putcopydata("$_\trow $_\n") for 1 .. $count;
    $dbh->pg_putcopyend;
    $dbh->do('copy (select * from copied order by n) to stdout');
    push @found, $row while $dbh->pg_getcopydata($row) >= 0;
    same(join('', @found) eq join('', map { "$_\trow $_\n" } 1 .. $count) ? 1 : 0, 1, 'the same rows');
    $dbh->do('copy copied from stdin');
    $dbh->pg_putcopydata("no number\tx\n");
    fails('22P02', sub { $dbh->pg_putcopyend });
    same(one($dbh, 'select count(*) from copied'), $count);
    $dbh->begin_work;
    my $oid = $dbh->pg_lo_creat($dbh->{pg_INV_WRITE} | $dbh->{pg_INV_READ});
    my $lo = $dbh->pg_lo_open($oid, $dbh->{pg_INV_WRITE} | $dbh->{pg_INV_READ});
    $dbh->pg_lo_write($lo, 'x' x 100000, 100000);
    $dbh->pg_lo_lseek($lo, 99990, 0);
    same($dbh->pg_lo_read($lo, my $part = '', 100), 10);
    $dbh->pg_lo_unlink($oid);
    $dbh->commit;
};

check 'cancel of an asynchronous query is 57014, and the connection goes on' => sub {
    my $dbh = open_();
    for (1 .. 3) {
        $dbh->do('select pg_sleep(30)', { pg_async => PG_ASYNC });
        sleep 0.3;
        my $began = time;
        $dbh->pg_cancel;
        time - $began < 5 or die "it was not cancelled\n";
        same(one($dbh, 'select ?::int', $_), $_) for 1 .. 20;
    }
};

check 'LISTEN and NOTIFY' => sub {
    my ($listener, $sender, $note) = (open_(), open_());
    $listener->do('listen news');
    for my $n (1 .. 3) {
        $sender->do("select pg_notify('news', ?)", undef, "n$n");
        my $deadline = time + 10;
        until ($note = $listener->pg_notifies) { time < $deadline or die "no notification within 10 s\n"; sleep 0.01 }
        same([ @$note[ 0, 2 ] ], [ 'news', "n$n" ]);
    }
};

check 'reconnects, and asks whether a connection lives whose server process has ended' => sub {
    my ($dbh, $looker) = (open_(), direct());
    for my $n (1 .. rounds(20)) {
        my $own = open_();
        same(one($own, 'select ?::int', $n), $n);
        $own->disconnect;
        $looker->do('select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()');
        $dbh = open_() unless $dbh->ping;
        same(one($dbh, 'select ?::int', $n), $n);
    }
};

my $failures = 0;
for ([ direct => $ENV{DRIVERS_DIRECT_PORT} ], [ proxy => $ENV{DRIVERS_PROXY_PORT} ]) {
    ($label, $port) = @$_;
    for (@checks) {
        my ($name, $run) = @$_;
        next if index(lc $name, lc($ENV{DRIVERS_ONLY} // '')) < 0;
        my $began = time;
        # What hangs ends the script, which is a failure of its own.
        alarm SECONDS_PER_CHECK;
        my $problem = eval { $run->(); 1 } ? '' : ": $@";
        alarm 0;
        $problem =~ s/\s+/ /g;
        $failures++ if $problem;
        printf "%s  %-14s %-6s  %s%s  (%.1f s)\n", $problem ? 'FAIL' : 'ok  ', 'perl', $label, $name, substr($problem, 0, 400), time - $began;
    }
}
print "done\n";
exit($failures ? 1 : 0);
